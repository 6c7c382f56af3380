//! Service accounts of a project that there is not, and the tokens that they sign for themselves.
//!
//! The official client library asks no server for a service account's token: it signs one with the account's RSA key
//! (AIP-4111), `alg` RS256, `kid` the key's id, with `iss` and `sub` the account, `scope` what it is for, `iat` ten seconds
//! ago and `exp` an hour and ten seconds from now. All of that is checked here, with the account's public key, as Google
//! does. What a token has to say is <https://google.aip.dev/auth/4111>.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, anyhow};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::{self, KeyPair as _, UnparsedPublicKey},
};
use axum::http::{HeaderMap, header};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

/// The project that everything is in.
pub(super) const PROJECT: &str = "coffer-tests";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// What it takes more than to use a key or to make an object.
const FOR_OWNERS: [&str; 3] = ["cloudkms.cryptoKeys.update", "storage.objects.delete", "storage.buckets.create"];
/// The longest that a token may be good for, clocks that differ by ten seconds included.
const LONGEST: u64 = 3620;
/// How far the clock of who signs may be before ours.
const SKEW: u64 = 60;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Who may do everything.
    Owner,
    /// Who may use keys and make objects, and neither change a key nor delete an object.
    User,
    /// Who may do nothing.
    Stranger,
    /// Whose key is none of the account's.
    Impostor,
}

impl Who {
    fn email(self) -> String {
        let name = match self {
            Self::Owner | Self::Impostor => "owner",
            Self::User => "user",
            Self::Stranger => "stranger",
        };
        format!("{name}@{PROJECT}.iam.gserviceaccount.com")
    }

    fn may(self, permission: &str) -> bool {
        match self {
            Self::Owner => true,
            Self::User => !FOR_OWNERS.contains(&permission),
            Self::Stranger | Self::Impostor => false,
        }
    }
}

/// An account that has shown who it is.
#[derive(Clone, Debug)]
pub(super) struct Account {
    key_id: String,
    public_key: Vec<u8>,
    who: Who,
    /// Its name.
    pub(super) email: String,
}

impl Account {
    /// Whether it has a permission.
    pub(super) fn may(&self, permission: &str) -> bool {
        self.who.may(permission)
    }
}

/// The accounts, with the files that they show themselves by.
#[derive(Debug)]
pub(super) struct Accounts {
    folder: PathBuf,
    known: Vec<Account>,
}

impl Accounts {
    /// Makes keys, and writes their files.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let mut accounts = Self { folder: folder.to_owned(), known: Vec::new() };
        for who in [Who::Owner, Who::User, Who::Stranger, Who::Impostor] {
            let key = KeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("no RSA key is made"))?;
            let private: Pkcs8V1Der = key.as_der().map_err(|_| anyhow!("an RSA key is not encoded"))?;
            let mut id = [0; 20];
            aws_lc_rs::rand::fill(&mut id).map_err(|_| anyhow!("no random bytes"))?;
            let key_id = id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let file = json!({
                "type": "service_account",
                "project_id": PROJECT,
                "private_key_id": key_id,
                "private_key": pem(private.as_ref()),
                "client_email": who.email(),
                "client_id": "100000000000000000001",
                "token_uri": "https://oauth2.googleapis.com/token",
                "universe_domain": "googleapis.com",
            });
            fs::write(accounts.file(who), serde_json::to_vec_pretty(&file)?)?;
            if who != Who::Impostor {
                let public_key = key.public_key().as_ref().to_vec();
                accounts.known.push(Account { key_id, public_key, who, email: who.email() });
            }
        }
        Ok(accounts)
    }

    /// The credentials file of one.
    pub(super) fn file(&self, who: Who) -> PathBuf {
        self.folder.join(format!("{who:?}.json").to_lowercase())
    }

    /// How a configuration says that one asks.
    pub(super) fn auth(&self, who: Who) -> Value {
        json!({"type": "credentials-file", "credentialsFile": self.file(who)})
    }

    /// Whose token a request shows; none where it shows no good one.
    pub(super) fn caller(&self, headers: &HeaderMap) -> Option<&Account> {
        let token = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
        let (signed, signature) = token.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let (head, claims) = (part(head)?, part(claims)?);
        let account = self.known.iter().find(|account| head["kid"] == account.key_id.as_str())?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, &account.public_key);
        key.verify(signed.as_bytes(), &signature).ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let (issued, expires) = (claims["iat"].as_u64()?, claims["exp"].as_u64()?);
        let is_good = head["alg"] == "RS256"
            && claims["iss"] == account.email.as_str()
            && claims["sub"] == account.email.as_str()
            && claims["scope"].as_str()?.split(' ').any(|scope| scope == SCOPE)
            && issued <= now + SKEW
            && now < expires
            && expires.checked_sub(issued)? <= LONGEST;
        is_good.then_some(account)
    }
}

fn part(text: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

fn pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII"));
    let lines: Vec<_> = lines.collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}
