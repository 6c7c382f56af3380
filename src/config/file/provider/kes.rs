//! Provider `kes`.

use crate::{
    config::file::{
        aws::FILE,
        provider::{Attempts, ProviderConfig, common, of},
        reading::Reading,
        section::Section,
        value::{Plain, endpoint, list, word},
    },
    key::kms::{Settings, settings::Kes},
};

const KEY_NAME: &str = "1 to 255 of A-Z, a-z, 0-9, _, . and -";

pub(super) fn read(section: &mut Section, reading: &mut Reading<'_>) -> Option<ProviderConfig> {
    section.title = "kes";
    let endpoints = section.ask("endpoints", "a list of https URLs").required(reading, list(endpoint(Plain::Never)));
    let key_name = section.ask("keyName", KEY_NAME).required(reading, word(255, "_.-"));
    let ca_file = section.ask("caFile", FILE).optional_file(reading);
    let certificate_file = section.ask("certificateFile", FILE).required_file(reading);
    let private_key_file = section.ask("privateKeyFile", FILE).required_file(reading);
    let password_file = section.ask("passwordFile", FILE).optional_file(reading);
    let common = common(section, Attempts::FromFile, reading);
    let settings = Kes {
        endpoints: endpoints?,
        key_name: key_name?,
        ca_file,
        certificate_file: certificate_file?,
        private_key_file: private_key_file?,
        password_file,
    };
    Some(of(common, Settings::Kes(settings)))
}
