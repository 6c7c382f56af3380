//! The HTTP API of OpenBao and Vault: addresses, headers, the shape of its answers, and what its refusals mean.

use std::fmt;

use reqwest::{Client, Method, RequestBuilder, StatusCode, header::HeaderValue};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;
use zeroize::Zeroizing;

use crate::key::{
    access::SettingsFault,
    kms::{
        KekState, KmsFailure,
        http::{self, Answer},
        settings,
    },
    reread::Reread,
};

const TOKEN: &str = "x-vault-token";
const NAMESPACE: &str = "x-vault-namespace";
/// An agent in between may ask for it, as a sign that no browser was led there.
const REQUEST: &str = "x-vault-request";

/// A token that can stand in a header.
pub(super) struct Token(Zeroizing<String>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

impl Token {
    /// None where the text has characters that no token has.
    pub(super) fn new(text: Zeroizing<String>) -> Option<Self> {
        let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then_some(Self(text))
    }

    fn header(&self) -> HeaderValue {
        let mut value = HeaderValue::from_str(&self.0).expect("a token has visible ASCII characters only");
        value.set_sensitive(true);
        value
    }
}

/// The server, and how it is asked.
pub(super) struct Api {
    client: Reread<Client>,
    address: Url,
    namespace: Option<HeaderValue>,
    /// The server as failures name it.
    pub(super) endpoint: String,
}

impl Api {
    pub(super) fn new(settings: &settings::Transit) -> Result<Self, SettingsFault> {
        let ca_file = settings.ca_file.clone();
        let files = ca_file.clone().into_iter().collect();
        let namespace = settings.namespace.as_deref().map(HeaderValue::from_str).transpose();
        Ok(Self {
            client: Reread::new(files, move || http::client(ca_file.as_deref(), None))?,
            address: settings.address.url.clone(),
            namespace: namespace.map_err(|_| SettingsFault("the namespace cannot stand in a header".to_owned()))?,
            endpoint: http::endpoint(&settings.address.url),
        })
    }

    /// A request for a path behind `/v1`, which begins with a mount: that may have several parts.
    pub(super) fn request(&self, method: Method, path: &[&str], token: Option<&Token>) -> RequestBuilder {
        let parts: Vec<_> = std::iter::once("v1").chain(path.iter().flat_map(|part| part.split('/'))).collect();
        let mut request = self.client.current().request(method, http::url(&self.address, &parts));
        request = request.header(REQUEST, "true");
        if let Some(namespace) = &self.namespace {
            request = request.header(NAMESPACE, namespace);
        }
        match token {
            Some(token) => request.header(TOKEN, token.header()),
            None => request,
        }
    }

    /// Makes a request. A server that cannot answer now is a failure; a refusal is an answer.
    pub(super) async fn ask(&self, request: RequestBuilder) -> Result<Answer, KmsFailure> {
        let answer = http::ask(request, &self.endpoint).await?;
        let said = said(&answer);
        // This is how it says that RSA ciphertext was changed.
        if answer.status == StatusCode::INTERNAL_SERVER_ERROR && is_mismatch(&said) {
            return Err(KmsFailure::Mismatch);
        }
        match answer.trouble(&self.endpoint, &said) {
            Some(trouble) => Err(trouble),
            None => Ok(answer),
        }
    }

    /// The `data` of a success.
    pub(super) fn data<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, KmsFailure> {
        answer.json::<Data<T>>(&self.endpoint).map(|Data { data }| data)
    }
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

/// What a refusal says, in one line.
pub(super) fn said(answer: &Answer) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    answer.parsed::<Errors>().map(|Errors { errors }| http::line(&errors.join("; "))).unwrap_or_default()
}

/// What is done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Encrypt,
    Decrypt,
    Configure,
}

impl Operation {
    /// The part of the path that stands between the mount and the key.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Read | Self::Configure => "keys",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        }
    }

    /// The part of the path that comes behind the key.
    pub(super) fn part(self) -> Option<&'static str> {
        (self == Self::Configure).then_some("config")
    }

    /// The capability that it takes.
    pub(super) fn capability(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Encrypt | Self::Decrypt | Self::Configure => "update",
        }
    }

    /// What a policy has to permit.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Read => "read on keys",
            Self::Encrypt => "update on encrypt",
            Self::Decrypt => "update on decrypt",
            Self::Configure => "update on keys/…/config",
        }
    }
}

/// What a refusal of an operation means, other than that the token may not.
pub(super) fn refused(operation: Operation, mount: &str, kek_id: &str, answer: &Answer) -> KmsFailure {
    let (kek_id, said) = (kek_id.to_owned(), said(answer));
    let is = |text: &str| said.contains(text);
    if operation == Operation::Decrypt && is_mismatch(&said) {
        KmsFailure::Mismatch
    } else if is("(too old)") {
        let hint = "the key's min_decryption_version was raised above it; lower it again".to_owned();
        KmsFailure::Unusable { kek_id, state: KekState::OutOfTime, hint }
    } else if is("soft-deleted") {
        soft_deleted(mount, kek_id)
    } else if is("not supported for key type") || is("non-AEAD cipher") {
        wrong_type(kek_id, said)
    } else if is("no handler for route") {
        let hint = format!("nothing is mounted at {mount} (bao secrets enable -path={mount} transit)");
        KmsFailure::NoSuchKek { kek_id, hint }
    } else if is("namespace not found") {
        KmsFailure::NoSuchKek { kek_id, hint: "the server has no such namespace".to_owned() }
    } else if answer.status == StatusCode::NOT_FOUND || is("encryption key not found") || is("no existing key named") {
        let hint = format!("look at `bao list {mount}/keys`, and at keyName, mount and namespace of the provider");
        KmsFailure::NoSuchKek { kek_id, hint }
    } else {
        let status = answer.status.as_u16();
        let detail = if said.is_empty() { format!("status {status}") } else { said };
        KmsFailure::Refused { action: operation.path(), kek_id, detail }
    }
}

/// The failure where a key is soft-deleted, which keeps it and forbids its use.
pub(super) fn soft_deleted(mount: &str, kek_id: String) -> KmsFailure {
    let hint = format!("restore it with `bao write -f {mount}/keys/NAME/soft-delete-restore`");
    KmsFailure::Unusable { kek_id, state: KekState::PendingDeletion, hint }
}

/// The failure where a key is no key that encrypts.
pub(super) fn wrong_type(kek_id: String, what: String) -> KmsFailure {
    let hint = "take a key of type aes256-gcm96, chacha20-poly1305 or rsa-4096".to_owned();
    KmsFailure::WrongType { kek_id, what, hint }
}

fn is_mismatch(said: &str) -> bool {
    const TEXTS: [&str; 5] =
        ["message authentication failed", "invalid ciphertext", "unable to decrypt", "RSA decrypt", "decryption error"];
    TEXTS.iter().any(|text| said.contains(text))
}
