//! How Azure is reached, and as whom: what `azure-key-vault` and `azure-blob` have in common.

use crate::{
    config::file::{
        aws::FILE,
        family::Family,
        reading::Reading,
        section::Section,
        value::{Plain, endpoint, parsed, word},
    },
    key::access::{AzureAccess, AzureAuth},
};

const TENANT: &str = "the id of a directory";
const CLIENT: &str = "the id of an application";
const NO_CERTIFICATE: (&str, &str) =
    ("client-certificate", "needs another TLS than Coffer's; use client-secret or workload-identity");

/// The sources of credentials for a vault.
pub(super) static VAULT_AUTH: Family<AzureAuth> = Family {
    name: "auth type",
    title: "auth of Azure",
    kinds: &[
        ("client-secret", client_secret),
        ("managed-identity", managed_identity),
        ("workload-identity", workload_identity),
    ],
    refused: &[NO_CERTIFICATE, ("sas", "is for azure-blob: a vault takes no signatures")],
};

/// The sources of credentials for blobs.
pub(super) static BLOB_AUTH: Family<AzureAuth> = Family {
    name: "auth type",
    title: "auth of Azure",
    kinds: &[
        ("client-secret", client_secret),
        ("managed-identity", managed_identity),
        ("workload-identity", workload_identity),
        ("sas", sas),
    ],
    refused: &[NO_CERTIFICATE],
};

/// Reads how a service of Azure is reached.
pub(super) fn access(
    section: &mut Section,
    auth: &Family<AzureAuth>,
    plain: Plain,
    reading: &mut Reading<'_>,
) -> Option<AzureAccess> {
    section.title = "How Azure is reached";
    let authority = section.ask("authorityHost", "a URL such as https://login.microsoftonline.us");
    let authority_host = authority.or_from(&["AZURE_AUTHORITY_HOST"]).optional(reading, endpoint(plain));
    let ca_file = section.ask("caFile", FILE).optional_file(reading);
    let ip_address = section.ask("ipAddress", "an IP address").optional(reading, parsed);
    let auth = section.section_or_empty("auth", auth.title, reading).read_as(auth, None, reading);
    Some(AzureAccess { auth: auth?, authority_host, ca_file, ip_address })
}

fn client_secret(section: &mut Section, reading: &mut Reading<'_>) -> Option<AzureAuth> {
    let tenant_id = section.ask("tenantId", TENANT).required(reading, word(255, ".-"));
    let client_id = section.ask("clientId", CLIENT).required(reading, word(255, ".-"));
    let secret_file = section.ask("clientSecretFile", FILE).required_file(reading);
    Some(AzureAuth::ClientSecret { tenant_id: tenant_id?, client_id: client_id?, secret_file: secret_file? })
}

fn managed_identity(section: &mut Section, reading: &mut Reading<'_>) -> Option<AzureAuth> {
    let client_id = section.ask("clientId", CLIENT).optional(reading, word(255, ".-"));
    Some(AzureAuth::ManagedIdentity { client_id })
}

fn workload_identity(section: &mut Section, reading: &mut Reading<'_>) -> Option<AzureAuth> {
    let tenant = section.ask("tenantId", TENANT).or_from(&["AZURE_TENANT_ID"]);
    let tenant_id = tenant.required(reading, word(255, ".-"));
    let client = section.ask("clientId", CLIENT).or_from(&["AZURE_CLIENT_ID"]);
    let client_id = client.required(reading, word(255, ".-"));
    let token = section.ask("tokenFile", FILE).or_from(&["AZURE_FEDERATED_TOKEN_FILE"]);
    let token_file = token.required_file(reading);
    Some(AzureAuth::WorkloadIdentity { tenant_id: tenant_id?, client_id: client_id?, token_file: token_file? })
}

fn sas(section: &mut Section, reading: &mut Reading<'_>) -> Option<AzureAuth> {
    let sas_file = section.ask("sasFile", FILE).required_file(reading);
    Some(AzureAuth::Sas { sas_file: sas_file? })
}
