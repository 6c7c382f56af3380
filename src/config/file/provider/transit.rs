//! Provider `transit`: OpenBao, HashiCorp Vault.

use crate::{
    config::file::{
        aws::{FILE, URL, insecure},
        family::Family,
        provider::{Attempts, ProviderConfig, common, of},
        reading::Reading,
        section::Section,
        value::{Misfit, Plain, checked, endpoint, text, word},
    },
    key::kms::{
        Settings,
        settings::{Transit, TransitAuth},
    },
};

const MOUNT: &str = "a path of A-Z, a-z, 0-9, _, ., - and /";
const KEY_NAME: &str = "1 to 255 of A-Z, a-z, 0-9, _, . and -";
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How a token is got.
pub(in crate::config::file) static AUTH: Family<TransitAuth> = Family {
    name: "auth type",
    title: "auth of transit",
    kinds: &[("token", token), ("approle", app_role), ("jwt", jwt), ("kubernetes", kubernetes)],
    refused: &[],
};

pub(super) fn read(section: &mut Section, reading: &mut Reading<'_>) -> Option<ProviderConfig> {
    section.title = "transit";
    let plain = Plain::Asked(insecure(section, reading));
    let address = section.ask("address", URL).or_from(&["BAO_ADDR", "VAULT_ADDR"]);
    let address = address.required(reading, endpoint(plain));
    let mount = section.ask("mount", MOUNT).or("transit", reading, checked(mount_path));
    let key_name = section.ask("keyName", KEY_NAME).required(reading, word(255, "_.-"));
    let namespace = section.ask("namespace", "a namespace of the server");
    let namespace = namespace.or_from(&["BAO_NAMESPACE", "VAULT_NAMESPACE"]).optional(reading, text);
    let ca_file = section.ask("caFile", FILE).optional_file(reading);
    let auth = section.section_or_empty("auth", AUTH.title, reading).read_as(&AUTH, None, reading);
    for name in ["BAO_TOKEN", "VAULT_TOKEN"] {
        if section.environment && reading.environment.get(name).is_some() {
            reading.warn(format!("environment: {name} does nothing; a token is read from auth.tokenFile"));
        }
    }
    let common = common(section, Attempts::FromFile, reading);
    let (address, key_name, auth) = (address?, key_name?, auth?);
    let settings = Transit { address, mount, key_name, namespace, ca_file, auth };
    Some(of(common, Settings::Transit(settings)))
}

/// Where something is mounted, without slashes at its ends.
fn mount_path(text: &str) -> Result<String, Misfit> {
    let path = text.trim_matches('/');
    let is_good = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    if path.split('/').all(is_good) { Ok(path.to_owned()) } else { Err(Misfit::Not(text.to_owned())) }
}

fn token(section: &mut Section, reading: &mut Reading<'_>) -> Option<TransitAuth> {
    let token_file = section.ask("tokenFile", FILE).required_file(reading)?;
    Some(TransitAuth::Token { token_file })
}

fn app_role(section: &mut Section, reading: &mut Reading<'_>) -> Option<TransitAuth> {
    let mount = auth_mount(section, "approle", reading);
    let role_id = section.ask("roleId", "the id of a role").required(reading, text);
    let secret_id_file = section.ask("secretIdFile", FILE).required_file(reading);
    Some(TransitAuth::AppRole { mount, role_id: role_id?, secret_id_file: secret_id_file? })
}

fn jwt(section: &mut Section, reading: &mut Reading<'_>) -> Option<TransitAuth> {
    let mount = auth_mount(section, "jwt", reading);
    let role = role(section, reading);
    let token_file = section.ask("tokenFile", FILE).required_file(reading);
    Some(TransitAuth::Jwt { mount, role: role?, token_file: token_file? })
}

fn kubernetes(section: &mut Section, reading: &mut Reading<'_>) -> Option<TransitAuth> {
    let mount = auth_mount(section, "kubernetes", reading);
    let role = role(section, reading);
    let token_file = section.ask("tokenFile", FILE).file_or(SERVICE_ACCOUNT_TOKEN, reading);
    Some(TransitAuth::Kubernetes { mount, role: role?, token_file })
}

fn auth_mount(section: &mut Section, usual: &'static str, reading: &mut Reading<'_>) -> String {
    section.ask("mount", MOUNT).documented("the type's name").or(usual, reading, checked(mount_path))
}

fn role(section: &mut Section, reading: &mut Reading<'_>) -> Option<String> {
    section.ask("role", "the name of a role").required(reading, text)
}
