//! `coffer audit …`

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use crate::chain::{Broken, Others, verify_among};

/// Stands for standard input in place of a file.
const STANDARD_INPUT: &str = "-";

/// Why an audit log is not verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyFailure {
    /// It cannot be opened.
    #[error("open {}", file.display())]
    Open {
        /// The log.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not hold together.
    #[error("{} is not what was written", file.display())]
    Broken {
        /// The log.
        file: PathBuf,
        /// Where, and how.
        #[source]
        source: Broken,
    },
    /// Standard output failed.
    #[error("write to standard output")]
    Output(#[from] io::Error),
}

/// `coffer audit verify`: reads an audit log to its end, and tells how many lines hold together. `-` is standard input.
/// With [`Others::PassedOver`] the log may be a part of another, as a container's is.
///
/// # Errors
/// The first line that was changed, cut out, put in or moved.
pub fn verify(file: &Path, others: Others, out: &mut impl Write) -> Result<(), VerifyFailure> {
    let reader: Box<dyn BufRead> = if file.as_os_str() == STANDARD_INPUT {
        Box::new(io::stdin().lock())
    } else {
        let opened = File::open(file).map_err(|source| VerifyFailure::Open { file: file.to_owned(), source })?;
        Box::new(BufReader::new(opened))
    };
    let verified = verify_among(reader, others);
    let lines = verified.map_err(|source| VerifyFailure::Broken { file: file.to_owned(), source })?;
    writeln!(out, "{lines} lines hold together; whether lines are cut off at the end shows only beside another copy")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::chain::Chain;

    #[test]
    fn a_log_is_told_whole_or_where_it_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (file, mut chain) = (folder.path().join("audit.log"), Chain::default());
        let line = |number| chain.link(&json!({ "number": number })).expect("an object");
        let mut lines: Vec<_> = (0..3).map(line).collect();
        let write =
            |lines: &[Vec<u8>]| fs::write(&file, [lines.join(&b'\n'), b"\n".to_vec()].concat()).expect("written");
        let told = |others| {
            let mut out = Vec::new();
            verify(&file, others, &mut out).map(|()| String::from_utf8(out).expect("text"))
        };
        write(&lines);
        assert!(told(Others::Refused).expect("whole").starts_with("3 lines hold together"));
        lines.insert(1, b"INFO serving".to_vec());
        write(&lines);
        assert!(told(Others::PassedOver).expect("whole").starts_with("3 lines"));
        let failure = told(Others::Refused).expect_err("a line that is none");
        assert!(matches!(failure, VerifyFailure::Broken { source: Broken::Foreign { line: 2 }, .. }), "{failure}");
        fs::remove_file(&file).expect("it was there");
        assert!(matches!(told(Others::Refused), Err(VerifyFailure::Open { .. })));
    }
}
