//! The token by which a node or a controller proves to a key service who it is: a projected ServiceAccount token, which
//! the kubelet writes and writes again before it ends (Kubernetes, "ServiceAccount token volume projection").
//!
//! The file is read for each request. It is a page of memory (tmpfs), and so the token in use is always the one that is
//! there: none is remembered, and one that was taken away is not used any more.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use tonic::metadata::{Ascii, MetadataValue};
use zeroize::Zeroizing;

/// The header that carries it (RFC 6750, section 2.1).
pub(super) const HEADER: &str = "authorization";
const SCHEME: &str = "Bearer ";
/// The most bytes that are taken for a token: with more, a request's headers would not fit.
const MAX_BYTES: usize = 8192;

/// A token in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token(PathBuf);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenFault {
    /// The file cannot be read.
    #[error("read the token in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no token: {what}", path.display())]
    Nonsense {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never what is in it.
        what: &'static str,
    },
}

impl Token {
    /// The token in a file, which is read when it is needed: it need not be there yet.
    #[must_use]
    pub fn in_file(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The header's value, which no log shows and no table of either end keeps (RFC 7541, section 7.1.3).
    pub(super) fn header(&self) -> Result<MetadataValue<Ascii>, TokenFault> {
        let read = |source| TokenFault::Read { path: self.0.clone(), source };
        let nonsense = |what| TokenFault::Nonsense { path: self.0.clone(), what };
        let file = File::open(&self.0).map_err(read)?;
        // As large as it can become, so that no half of it stays in memory that was outgrown.
        let mut bytes = Zeroizing::new(Vec::with_capacity(SCHEME.len() + MAX_BYTES + 1));
        bytes.extend_from_slice(SCHEME.as_bytes());
        (&file).take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() > SCHEME.len() + MAX_BYTES {
            return Err(nonsense("it has more than 8192 bytes"));
        }
        while bytes.len() > SCHEME.len() && bytes.last().is_some_and(u8::is_ascii_whitespace) {
            bytes.pop();
        }
        match &bytes[SCHEME.len()..] {
            [] => return Err(nonsense("it is empty")),
            token if !token.iter().all(|byte| is_of_token(*byte)) => {
                return Err(nonsense("a byte of it is in no bearer token"));
            }
            _ => {}
        }
        let value = MetadataValue::<Ascii>::try_from(bytes.as_slice());
        let mut value = value.map_err(|_| nonsense("it fits into no header"))?;
        value.set_sensitive(true);
        note_age(&file);
        Ok(value)
    }
}

/// `b64token` (RFC 6750, section 2.1).
fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

/// A token that grows old is one that the kubelet no longer renews.
fn note_age(file: &File) {
    let written = file.metadata().and_then(|metadata| metadata.modified());
    if let Some(age) = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok()) {
        metrics::gauge!("coffer_token_age_seconds").set(age.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn shown(token: &Token) -> Result<String, String> {
        let value = token.header().map_err(|fault| fault.to_string())?;
        assert!(value.is_sensitive(), "a token that could be logged");
        assert!(!format!("{value:?}").contains("Bearer"), "{value:?}");
        Ok(value.to_str().expect("ASCII").to_owned())
    }

    /// Puts a token where the kubelet puts one: in a new folder, to which `..data` is pointed in one step.
    fn write(volume: &Path, version: &str, token: &str) {
        fs::create_dir(volume.join(version)).expect("a folder");
        fs::write(volume.join(version).join("token"), token).expect("written");
        symlink(version, volume.join("..data_tmp")).expect("a link");
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("renamed");
    }

    #[test]
    fn the_token_in_use_is_the_one_that_the_kubelet_wrote_last() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("token");
        let token = Token::in_file(&path);
        assert!(shown(&token).expect_err("not there yet").contains("token"), "the file is not named");
        symlink("..data/token", &path).expect("a link");
        write(folder.path(), "..2026_01", "first.token-1_~+/==");
        assert_eq!(shown(&token).as_deref(), Ok("Bearer first.token-1_~+/=="));
        write(folder.path(), "..2026_02", "second\n");
        fs::remove_dir_all(folder.path().join("..2026_01")).expect("removed");
        assert_eq!(shown(&token).as_deref(), Ok("Bearer second"));
        fs::remove_file(folder.path().join("..data")).expect("removed");
        assert!(shown(&token).is_err(), "a token that was taken away is used");
    }

    #[test]
    fn what_is_no_token_is_not_sent_and_not_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("token");
        for content in ["", "\n", "mar ked", "mar\r\nked: x", "märked", &"m".repeat(MAX_BYTES + 1)] {
            fs::write(&path, content).expect("written");
            let fault = shown(&Token::in_file(&path)).expect_err(content);
            assert!(!fault.contains("ked") && fault.contains("holds no token"), "{fault}");
        }
        fs::write(&path, "m".repeat(MAX_BYTES)).expect("written");
        shown(&Token::in_file(&path)).expect("as long as a token may be");
    }
}
