//! Azure: our imitation of Key Vault and of a managed HSM, since no emulator can be had, and Azurite for Blob Storage.
//!
//! The imitation is two servers: a vault under its real name, by TLS and with the address given to the client, and a
//! directory that gives tokens. Wrapping is real, tokens are checked, and what they follow is written at the head of
//! their files. It is never part of the program.

mod azurite;
mod entra;
mod keys;
mod policy;
mod vault;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::Router;
use serde_json::{Value, json};
use tonic::async_trait;

use self::{
    entra::{CLIENT, Entra, KEEPER, STRANGER, TENANT},
    keys::Material,
    vault::{Kind, SIGNING, Vault, WRAPPING},
};
use crate::cloud::{
    Forecast, KmsBed, Standing, Variant,
    weather::{self, Authority, Served, Tls},
};

pub use azurite::Azurite;

/// The name of the KEK.
const KEY: &str = "coffer";
const RSA_KEY: &str = "coffer-rsa";
const SIGNING_KEY: &str = "signing";
const MISSING_KEY: &str = "missing";
const THROTTLED: &str = "{\"error\":{\"code\":\"Throttled\",\"message\":\"Request was not processed because too many \
                         requests were received. Reason: VaultRequestTypeLimitReached\"}}";

/// A vault, and the directory that gives tokens for it.
struct Bed {
    kind: Kind,
    vault: Arc<Vault>,
    entra: Arc<Entra>,
    folder: PathBuf,
    ca_file: PathBuf,
    forecast: Forecast,
    router: Router,
    tls: Tls,
    address: SocketAddr,
    served: Mutex<Option<Served>>,
    directory: Served,
}

impl Bed {
    async fn start(kind: Kind, folder: &Path) -> Result<Self> {
        let authority = Authority::new(folder)?;
        let entra = Entra::new();
        let directory = weather::serve(entra.router(), Some(authority.server(&["localhost", "127.0.0.1"])?)).await?;

        let vault = Vault::new(kind, entra.clone());
        vault.add(KEY, if kind == Kind::Vault { Material::rsa()? } else { Material::aes()? }, WRAPPING);
        vault.add(RSA_KEY, Material::rsa()?, WRAPPING);
        vault.add(SIGNING_KEY, Material::rsa()?, SIGNING);
        let forecast = Forecast::new().throttled_by(429, "application/json", THROTTLED);
        let router = weather::under(vault.router(), forecast.clone());
        let tls = authority.server(&[host(kind).as_str()])?;
        let served = weather::serve(router.clone(), Some(tls.clone())).await?;
        let address = served.address();
        vault.set_base(&format!("https://{}:{}", host(kind), address.port()));

        fs::write(folder.join("client.secret"), entra.secret(CLIENT))?;
        fs::write(folder.join("keeper.secret"), entra.secret(KEEPER))?;
        fs::write(folder.join("stranger.secret"), entra.secret(STRANGER))?;
        fs::write(folder.join("wrong.secret"), "not the application's secret")?;
        fs::write(folder.join("service-account.token"), entra.assertion())?;
        Ok(Self {
            kind,
            vault,
            entra,
            folder: folder.to_owned(),
            ca_file: authority.ca_file(),
            forecast,
            router,
            tls,
            address,
            served: Mutex::new(Some(served)),
            directory,
        })
    }

    fn config(&self, variant: Variant) -> Option<Value> {
        let mut config = self.config_with(self.client_secret(CLIENT, "client.secret"));
        match variant {
            Variant::Good => {}
            Variant::Rsa => {
                config["keyName"] = RSA_KEY.into();
                config["algorithm"] = "rsa-oaep-256".into();
            }
            Variant::MissingKek => config["keyName"] = MISSING_KEY.into(),
            Variant::WrongType => {
                config["keyName"] = SIGNING_KEY.into();
                config["algorithm"] = "rsa-oaep-256".into();
            }
            Variant::NoPermission => config["auth"] = self.client_secret(STRANGER, "stranger.secret"),
            Variant::BadCredentials => config["auth"] = self.client_secret(CLIENT, "wrong.secret"),
            // A vault's region is nothing that its clients know.
            Variant::WrongRegion => return None,
        }
        Some(config)
    }

    fn config_with(&self, auth: Value) -> Value {
        json!({
            "type": "azure-key-vault",
            "vaultUrl": format!("https://{}:{}", host(self.kind), self.address.port()),
            "vaultType": self.kind.vault_type(),
            "keyName": KEY,
            "auth": auth,
            "authorityHost": format!("https://{}", self.directory.address()),
            "caFile": self.ca_file,
            "ipAddress": self.address.ip(),
        })
    }

    fn client_secret(&self, client_id: &str, file: &str) -> Value {
        json!({
            "type": "client-secret", "tenantId": TENANT, "clientId": client_id,
            "clientSecretFile": self.folder.join(file),
        })
    }

    fn keeper(&self) -> Value {
        self.config_with(self.client_secret(KEEPER, "keeper.secret"))
    }

    fn workload_identity(&self) -> Value {
        self.config_with(json!({
            "type": "workload-identity", "tenantId": TENANT, "clientId": CLIENT,
            "tokenFile": self.folder.join("service-account.token"),
        }))
    }

    fn renew_service_account_token(&self) -> Result<()> {
        // As the kubelet does it: the name goes to another file at once.
        let (new, file) = (self.folder.join("service-account.token.new"), self.folder.join("service-account.token"));
        fs::write(&new, self.entra.renew_assertion())?;
        Ok(fs::rename(new, file)?)
    }

    fn managed_identity(&self) -> (Value, [(&'static str, String); 2]) {
        let endpoint = format!("https://{}/msi/token", self.directory.address());
        let variables = [("IDENTITY_ENDPOINT", endpoint), ("IDENTITY_HEADER", self.entra.identity_header())];
        (self.config_with(json!({ "type": "managed-identity", "clientId": CLIENT })), variables)
    }

    async fn outage(&self, begins: bool) -> Result<()> {
        self.set_served(None);
        if !begins {
            let served = weather::serve_at(self.router.clone(), Some(self.tls.clone()), self.address).await?;
            self.set_served(Some(served));
        }
        Ok(())
    }

    async fn move_to_another_authority(&self) -> Result<PathBuf> {
        let folder = self.folder.join("another-authority");
        fs::create_dir_all(&folder)?;
        let authority = Authority::new(&folder)?;
        let tls = authority.server(&[host(self.kind).as_str()])?;
        self.set_served(None);
        self.set_served(Some(weather::serve_at(self.router.clone(), Some(tls), self.address).await?));
        Ok(authority.ca_file())
    }

    fn set_served(&self, served: Option<Served>) {
        *self.served.lock().unwrap_or_else(PoisonError::into_inner) = served;
    }
}

fn host(kind: Kind) -> String {
    format!("coffer.{}", kind.domain())
}

macro_rules! bed {
    ($(#[$doc:meta])* $name:ident, $kind:expr, $server:literal) => {
        $(#[$doc])*
        pub struct $name(Bed);

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).field("address", &self.0.address).finish_non_exhaustive()
            }
        }

        impl $name {
            /// Starts one, with a KEK, an RSA KEK and a signing key.
            ///
            /// # Errors
            /// There is no port, or the folder cannot be written to.
            pub async fn start(folder: &Path) -> Result<Self> {
                Ok(Self(Bed::start($kind, folder).await?))
            }

            /// The good configuration, with a ServiceAccount token in place of a secret.
            #[must_use]
            pub fn workload_identity(&self) -> Value {
                self.0.workload_identity()
            }

            /// Puts another ServiceAccount token in the place of the one before, which is taken no more.
            ///
            /// # Errors
            /// The folder cannot be written to.
            pub fn renew_service_account_token(&self) -> Result<()> {
                self.0.renew_service_account_token()
            }

            /// The good configuration, with the identity of the machine, and the variables by which a program finds it
            /// on App Service.
            #[must_use]
            pub fn managed_identity(&self) -> (Value, [(&'static str, String); 2]) {
                self.0.managed_identity()
            }

            /// Goes on at the same address with a certificate of another authority, whose file is the answer. The
            /// directory that gives tokens keeps its own.
            ///
            /// # Errors
            /// The folder cannot be written to, or the address is not given back.
            pub async fn move_to_another_authority(&self) -> Result<PathBuf> {
                self.0.move_to_another_authority().await
            }

            /// How many seconds tokens last that are given from now on. With 300 or less the SDK asks for one a call.
            pub fn set_token_lifetime(&self, seconds: u64) {
                self.0.entra.set_lifetime(seconds);
            }

            /// Takes no token any more that was given so far.
            pub fn revoke_tokens(&self) {
                self.0.entra.revoke();
            }

            /// Gives the KEK a rotation policy, as the portal would.
            pub fn set_policy(&self, policy: Value) {
                self.0.vault.set_policy(KEY, policy);
            }

            /// The KEK's rotation policy.
            #[must_use]
            pub fn policy(&self) -> Value {
                self.0.vault.policy_of(KEY)
            }

            /// Limits the time, in seconds since 1970, in which the KEK wraps.
            pub fn limit(&self, not_before: Option<u64>, expires: Option<u64>) {
                self.0.vault.limit(KEY, not_before, expires);
            }
        }

        #[async_trait]
        impl KmsBed for $name {
            fn provider(&self) -> &'static str {
                "azure-key-vault"
            }

            fn server(&self) -> String {
                $server.to_owned()
            }

            fn standing(&self) -> Standing {
                Standing::OurFake
            }

            async fn config(&self, variant: Variant) -> Result<Option<Value>> {
                Ok(self.0.config(variant))
            }

            async fn keeper(&self) -> Result<Option<Value>> {
                Ok(Some(self.0.keeper()))
            }

            fn forecast(&self) -> &Forecast {
                &self.0.forecast
            }

            async fn rotate(&self) -> Result<bool> {
                self.0.vault.rotate(KEY)?;
                self.0.vault.rotate(RSA_KEY)?;
                Ok(true)
            }

            async fn enable(&self, enabled: bool) -> Result<bool> {
                self.0.vault.enable(KEY, enabled);
                self.0.vault.enable(RSA_KEY, enabled);
                Ok(true)
            }

            async fn outage(&self, begins: bool) -> Result<bool> {
                self.0.outage(begins).await?;
                Ok(true)
            }
        }
    };
}

bed! {
    /// A vault: RSA-OAEP-256.
    KeyVault, Kind::Vault, "Azure Key Vault, imitated"
}
bed! {
    /// A managed HSM: A256KW, and RSA-OAEP-256.
    ManagedHsm, Kind::ManagedHsm, "Azure managed HSM, imitated"
}
