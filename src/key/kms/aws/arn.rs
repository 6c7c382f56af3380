//! Names of keys in AWS KMS: `arn:PARTITION:kms:REGION:ACCOUNT:RESOURCE`, the resource being `key/ID` or `alias/NAME`.

/// A whole name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arn<'a> {
    partition: &'a str,
    pub(super) region: &'a str,
    account: &'a str,
    resource: &'a str,
}

impl<'a> Arn<'a> {
    /// None where it is an id or an alias without region and account.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<_> = text.splitn(6, ':').collect();
        match parts.as_slice() {
            ["arn", partition, "kms", region, account, resource] => Some(Self { partition, region, account, resource }),
            _ => None,
        }
    }

    /// Whether the key may have replicas in other regions.
    pub(super) fn is_multi_region(self) -> bool {
        self.resource.strip_prefix("key/").is_some_and(is_multi_region)
    }

    /// The replica's name in another region.
    pub(super) fn in_region(self, region: &str) -> String {
        let Self { partition, account, resource, .. } = self;
        format!("arn:{partition}:kms:{region}:{account}:{resource}")
    }
}

/// Whether an id is that of a multi-region key.
pub(super) fn is_multi_region(id: &str) -> bool {
    id.starts_with("mrk-")
}

/// Whether an ARN that KMS returned names the key that was asked for. An alias never does: it may have moved.
pub(super) fn is_same_key(returned: &str, asked: &str) -> bool {
    match Arn::parse(asked) {
        Some(_) => returned == asked,
        None => Arn::parse(returned).and_then(|arn| arn.resource.strip_prefix("key/")) == Some(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws-cn:kms:cn-north-1:123456789012:key/mrk-1";

    #[test]
    fn an_arn_is_taken_apart_and_put_together() {
        let arn = Arn::parse(KEY).expect("an ARN");
        assert_eq!((arn.region, arn.is_multi_region()), ("cn-north-1", true));
        assert_eq!(arn.in_region("cn-northwest-1"), "arn:aws-cn:kms:cn-northwest-1:123456789012:key/mrk-1");
        let alias = Arn::parse("arn:aws:kms:eu-west-1:1:alias/mrk-no:key").expect("an ARN");
        assert!(!alias.is_multi_region());
        for text in ["", "mrk-1", "alias/coffer", "arn:aws:s3:::bucket", "arn:aws:kms:eu-west-1:1"] {
            assert_eq!(Arn::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_key_itself_is_the_same() {
        assert!(is_same_key(KEY, KEY) && is_same_key(KEY, "mrk-1"));
        let replica = "arn:aws-cn:kms:cn-northwest-1:123456789012:key/mrk-1";
        for asked in ["mrk-2", "1", "key/mrk-1", "alias/coffer", replica] {
            assert!(!is_same_key(KEY, asked), "{asked}");
        }
    }
}
