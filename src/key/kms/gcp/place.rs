//! Names of keys in Cloud KMS: `projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY`.

/// Where a key lies.
pub(super) struct Place<'a> {
    pub(super) project: &'a str,
    pub(super) location: &'a str,
    pub(super) ring: &'a str,
}

impl<'a> Place<'a> {
    /// None where this is not the whole name of a key, in characters that Cloud KMS has in names.
    pub(super) fn of(key_name: &'a str) -> Option<Self> {
        let parts: Vec<_> = key_name.split('/').collect();
        let ["projects", project, "locations", location, "keyRings", ring, "cryptoKeys", key] = parts[..] else {
            return None;
        };
        let is_name = |name: &&str| {
            let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
            !name.is_empty() && name.bytes().all(is_safe) && name.bytes().any(|byte| byte.is_ascii_alphanumeric())
        };
        let are_names = [project, location, ring, key].iter().all(is_name);
        are_names.then_some(Self { project, location, ring })
    }
}

/// Whether two names are those of one key, whose project is named by its id or by its number.
pub(super) fn is_same_key(one: &str, other: &str) -> bool {
    let place = |name: &str| name.splitn(3, '/').nth(2).map(str::to_owned);
    Place::of(one).is_some() && place(one) == place(other)
}

/// The location that an endpoint is for, where it is for one only.
pub(super) fn region_of(endpoint: &str) -> Option<&str> {
    let (_, host) = endpoint.split_once("://")?;
    let host = host.split([':', '/']).next()?.strip_suffix(".googleapis.com")?;
    let regional = host.strip_prefix("cloudkms.").and_then(|host| host.strip_suffix(".rep"));
    regional.or_else(|| host.strip_suffix("-cloudkms")).filter(|region| !region.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/k";

    #[test]
    fn a_project_may_be_answered_by_its_number() {
        assert!(is_same_key("projects/17/locations/europe-west3/keyRings/r/cryptoKeys/k", KEY));
        assert!(!is_same_key("projects/p/locations/europe-west3/keyRings/r/cryptoKeys/l", KEY));
        assert!(!is_same_key("", KEY));
    }
}
