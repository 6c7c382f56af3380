//! Provider `azure-key-vault`.

use crate::{
    config::file::{
        azure::{VAULT_AUTH, access},
        provider::{Attempts, ProviderConfig, common, of},
        reading::Reading,
        section::Section,
        source::Source,
        value::{Plain, choice, endpoint, names, word},
    },
    key::kms::{
        Settings,
        settings::{AzureKeyVault, VaultType},
    },
};

const VAULT_URL: &str = "an https URL such as https://NAME.vault.azure.net";
const TYPES: &[(&str, VaultType)] = &[("vault", VaultType::Vault), ("managed-hsm", VaultType::ManagedHsm)];
const RSA: &str = "rsa-oaep-256";
const AES: &str = "aes-key-wrap-256";
const ALGORITHMS: &[(&str, bool)] = &[(RSA, true), (AES, false)];

/// How the hosts of each kind end, in each of Microsoft's clouds.
const HOSTS: [(&str, VaultType); 6] = [
    (".vault.azure.net", VaultType::Vault),
    (".vault.azure.cn", VaultType::Vault),
    (".vault.usgovcloudapi.net", VaultType::Vault),
    (".managedhsm.azure.net", VaultType::ManagedHsm),
    (".managedhsm.azure.cn", VaultType::ManagedHsm),
    (".managedhsm.usgovcloudapi.net", VaultType::ManagedHsm),
];

pub(super) fn read(section: &mut Section, reading: &mut Reading<'_>) -> Option<ProviderConfig> {
    section.title = "azure-key-vault";
    let vault = section.ask("vaultUrl", VAULT_URL).required(reading, endpoint(Plain::Never));
    let vault_type = section.ask("vaultType", names(TYPES)).or("vault", reading, choice(TYPES));
    let key_name = section.ask("keyName", "1 to 127 of A-Z, a-z, 0-9 and -").required(reading, word(127, "-"));
    let key_version = section.ask("keyVersion", "the id of a version").documented("the newest");
    let key_version = key_version.optional(reading, word(64, ""));
    let algorithm_is_given = section.has("algorithm");
    let algorithm = section.ask("algorithm", names(ALGORITHMS));
    let algorithm = algorithm.documented("rsa-oaep-256 in a vault, aes-key-wrap-256 in a managed HSM");
    let rsa = algorithm.optional(reading, choice(ALGORITHMS));
    let access = access(section, &VAULT_AUTH, Plain::Never, reading);
    let common = common(section, Attempts::FromFile, reading);

    if !algorithm_is_given {
        let usual = if vault_type == VaultType::Vault { RSA } else { AES };
        reading.give(section.place("algorithm"), usual, Source::Default);
    }
    if vault_type == VaultType::Vault && rsa == Some(false) {
        let what = format!("{AES} is for vaultType managed-hsm: a vault has RSA keys only");
        section.fault("algorithm", &what, reading);
    }
    if !common.context.is_empty() {
        let what = "neither RSA nor AES Key Wrap takes a context; take it out (each key stays bound to its volume by \
                    Coffer itself)";
        section.fault("context", what, reading);
    }
    let vault_url = vault?.url;
    if vault_url.path() != "/" {
        section.fault("vaultUrl", "has a path; expected the vault alone, and the key in keyName", reading);
    }
    let host = vault_url.host_str().unwrap_or_default();
    let told = HOSTS.iter().find(|(end, _)| host.ends_with(end)).map(|(_, kind)| *kind);
    if told.is_some_and(|told| told != vault_type) {
        let (is, other) = match vault_type {
            VaultType::Vault => ("a managed HSM", "managed-hsm"),
            VaultType::ManagedHsm => ("a vault", "vault"),
        };
        section.fault("vaultType", &format!("{host} is {is}; expected {other}"), reading);
    }
    let rsa = rsa.unwrap_or(vault_type == VaultType::Vault);
    let (key_name, access) = (key_name?, access?);
    let settings = AzureKeyVault { vault_url, vault_type, key_name, key_version, rsa, access };
    Some(of(common, Settings::AzureKeyVault(settings)))
}
