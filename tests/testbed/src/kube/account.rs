//! Who asks: ServiceAccounts with their tokens, and the Pods and Nodes that tokens are bound to. They are objects at
//! the API server; no kubelet runs them.

use std::fmt::Debug;

use anyhow::{Context, Result};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Namespace, Node, Pod, ServiceAccount},
    },
};
use kube::{Api, Client, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::ApiServer;

/// How long a token of a test is good for, in seconds: what the API server gives at least.
const TOKEN_SECONDS: i64 = 600;

impl ApiServer {
    /// Makes a namespace and a ServiceAccount in it, where they are missing.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn account(&self, namespace: &str, name: &str) -> Result<()> {
        self.namespace(namespace).await?;
        let object = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": namespace },
        });
        make::<ServiceAccount>(&self.within(namespace), object).await
    }

    /// Makes a namespace, where it is missing.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        make::<Namespace>(&Api::all(self.client()), object).await
    }

    /// Makes a Node, where it is missing.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn node(&self, name: &str) -> Result<()> {
        let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        make::<Node>(&Api::all(self.client()), object).await
    }

    /// A Pod of a ServiceAccount on a node. Namespace, account and Node are made where they are missing; of a Pod that
    /// is there already, that one.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn pod(&self, namespace: &str, account: &str, name: &str, node: &str) -> Result<Pod> {
        self.account(namespace, account).await?;
        self.node(node).await?;
        let pods: Api<Pod> = self.within(namespace);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "nodeName": node,
                "containers": [{ "name": "main", "image": "localhost/shell:test" }],
            },
        });
        make(&pods, object).await?;
        pods.get(name).await.with_context(|| format!("get Pod {name}"))
    }

    /// A ServiceAccount's token for an audience, bound to a Pod of the account where one is named.
    ///
    /// # Errors
    /// There is no such account or Pod, or the Pod is of another account.
    pub async fn token(&self, namespace: &str, account: &str, audience: &str, pod: Option<&str>) -> Result<String> {
        self.request(namespace, account, vec![audience.to_owned()], pod).await
    }

    /// A client with a ServiceAccount's token. Namespace and account are made where they are missing.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn as_account(&self, namespace: &str, name: &str) -> Result<Client> {
        self.account(namespace, name).await?;
        // No audience is the API server's own.
        let token = self.request(namespace, name, Vec::new(), None).await?;
        self.identity.client(&token).await
    }

    async fn request(
        &self,
        namespace: &str,
        account: &str,
        audiences: Vec<String>,
        pod: Option<&str>,
    ) -> Result<String> {
        let bound = |name: &str| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name.to_owned()),
            uid: None,
        };
        let spec =
            TokenRequestSpec { audiences, bound_object_ref: pod.map(bound), expiration_seconds: Some(TOKEN_SECONDS) };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts: Api<ServiceAccount> = self.within(namespace);
        let granted = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("request a token of {namespace}/{account}"))?;
        Ok(granted.status.context("a token was granted")?.token)
    }

    fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client(), namespace)
    }
}

/// Makes an object that may be there already.
async fn make<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    let what = format!("make {} {}", object["kind"], object["metadata"]["name"]);
    match api.create(&PostParams::default(), &serde_json::from_value(object)?).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error).context(what),
    }
}
