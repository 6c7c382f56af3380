//! Quantities as Kubernetes writes them: `1Gi`, `500M`, `1.5e9` (k8s.io/apimachinery, `resource.Quantity`), read as bytes.

use crate::csi::request::Invalid;

/// The suffixes of powers of two.
const BINARY: &[(&str, u32)] = &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
/// The suffixes of powers of ten.
const DECIMAL: &[(&str, i32)] =
    &[("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
/// With more digits a number is larger than any disk, or finer than any byte.
const DIGITS: usize = 20;
/// Powers of ten beyond this one are none of bytes.
const EXPONENT: i32 = 18;
/// The most bytes of a volume: what CSI's messages carry.
const MOST: u128 = i64::MAX as u128;

/// A number of bytes, rounded up, and more than none.
///
/// # Errors
/// It is no quantity, is not above zero, or is more than 2^63 - 1 bytes.
pub fn bytes(text: &str) -> Result<u64, Invalid> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let (number, suffix) = text.split_at(text.find(|c: char| !is_number(c)).unwrap_or(text.len()));
    let refuse = |fault: &str| Invalid::new(format!("{text:?} {fault}"));
    let nonsense = || refuse("is not a quantity of bytes, like 1Gi or 500M");
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = [whole, fraction].concat();
    if digits.is_empty() || fraction.contains('.') {
        return Err(nonsense());
    }
    if digits.len() > DIGITS {
        return Err(refuse("has more digits than a number of bytes can have"));
    }
    let digits: u128 = digits.parse().map_err(|_| nonsense())?;
    let places = i32::try_from(fraction.len()).map_err(|_| nonsense())?;
    let (times, power) = match BINARY.iter().find(|(name, _)| *name == suffix) {
        Some((_, bits)) => (1_u128 << bits, -places),
        None => (1, exponent(suffix).ok_or_else(nonsense)? - places),
    };
    let ten = 10_u128.pow(power.unsigned_abs());
    let product = digits.checked_mul(times);
    let bytes = if power < 0 {
        product.map(|product| product.div_ceil(ten))
    } else {
        product.and_then(|product| product.checked_mul(ten))
    };
    match bytes {
        Some(0) => Err(refuse("is nothing")),
        Some(bytes) if bytes <= MOST => u64::try_from(bytes).map_err(|_| nonsense()),
        Some(_) | None => Err(refuse("is more than any volume can have")),
    }
}

/// The power of ten that a suffix stands for: one of the letters, or `e` and a number.
fn exponent(suffix: &str) -> Option<i32> {
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some(*power);
    }
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (power.abs() <= EXPONENT).then_some(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        let cases = [
            ("1", 1),
            ("1Ki", 1 << 10),
            ("64Mi", 64 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            (".5Gi", 1 << 29),
            ("1.Gi", 1 << 30),
            ("7Ei", 7 << 60),
            ("500M", 500_000_000),
            ("2k", 2000),
            ("1E", 1_000_000_000_000_000_000),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1e+3", 1000),
            ("1500e-3", 2),
            ("0.1", 1),
            ("1500m", 2),
            ("1n", 1),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
            ("00000000001Gi", 1 << 30),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_of_a_volume_is_refused() {
        let words = "Gi -1Gi +1Gi 1gi 1GiB 1K 1KB 1.2.3 . 0x10 1e 1e1.5 1e99 1e-99 1e2147483648 １Gi ∞ 0 0Gi 8Ei \
                     9223372036854775808 99999999999999999999Ei 111111111111111111111";
        for text in words.split(' ').chain(["", " ", "1 Gi"]) {
            let refused = bytes(text).expect_err(text);
            assert!(refused.to_string().starts_with(&format!("{text:?}")), "{refused}");
        }
    }
}
