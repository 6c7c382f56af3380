//! LUKS headers as the world's cryptsetup makes and opens them: the metadata of the real format, and a keyslot that
//! shows whether a DEK opens it and which volume key is inside.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use sha2::{Digest, Sha256};

const METADATA: usize = 16 * 1024;
const BINARY: usize = 4096;
const KEYSLOT: u64 = 2 * METADATA as u64;
/// Bytes of a DEK's proof and of the volume key in the first keyslot.
const PROOF: usize = 32;
const SLOT: usize = PROOF + 8 + 32;

/// Where the encrypted data begins, in bytes.
pub(crate) const DATA_OFFSET: u64 = 1 << 20;
/// Where the finish mark lies, in bytes.
pub(crate) const MARK_OFFSET: u64 = DATA_OFFSET - 4096;

/// Writes a header into a file that is full of zeros.
pub(crate) fn make(file: &Path, uuid: &str, sector: &str, dek: &[u8], volume_key: u64) -> io::Result<()> {
    let file = File::options().write(true).open(file)?;
    let json = format!(
        r#"{{"keyslots":{{"0":{{"type":"luks2","key_size":64,"af":{{"type":"luks1","stripes":4000,"hash":"sha256"}},"area":{{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64}},"kdf":{{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}}}}}},"tokens":{{}},"segments":{{"0":{{"type":"crypt","offset":"{DATA_OFFSET}","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":{sector}}}}},"digests":{{"0":{{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","digest":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}}}},"config":{{"json_size":"12288","keyslots_size":"786432"}}}}"#
    );
    for (magic, offset) in [(b"LUKS\xba\xbe", 0_usize), (b"SKUL\xba\xbe", METADATA)] {
        let mut copy = vec![0; BINARY];
        copy[..6].copy_from_slice(magic);
        copy[6..8].copy_from_slice(&[0, 2]);
        copy[8..16].copy_from_slice(&(METADATA as u64).to_be_bytes());
        copy[72..78].copy_from_slice(b"sha256");
        copy[168..168 + uuid.len()].copy_from_slice(uuid.as_bytes());
        copy[256..264].copy_from_slice(&(offset as u64).to_be_bytes());
        copy.extend(json.as_bytes());
        file.write_all_at(&copy, offset as u64)?;
    }
    let mut slot = [proof(dek).as_slice(), &volume_key.to_be_bytes()].concat();
    let whole = Sha256::digest(&slot);
    slot.extend(whole);
    file.write_all_at(&slot, KEYSLOT)
}

/// The volume key in a header, where the DEK opens it.
pub(crate) fn open(slot: &[u8], dek: &[u8]) -> Option<u64> {
    let whole = Sha256::digest(&slot[..PROOF + 8]);
    (slot[PROOF + 8..SLOT] == *whole && slot[..PROOF] == proof(dek))
        .then(|| u64::from_be_bytes(slot[PROOF..PROOF + 8].try_into().expect("8 bytes")))
}

/// What of a header's file opens it.
pub(crate) fn slot_of_file(file: &Path) -> io::Result<Vec<u8>> {
    let mut slot = vec![0; SLOT];
    File::open(file)?.read_exact_at(&mut slot, KEYSLOT)?;
    Ok(slot)
}

/// What of a device's header opens it, and whether there is a header at all.
pub(crate) fn slot_of_disk(disk: &crate::disk::Disk) -> Option<Vec<u8>> {
    let start = disk.read(0, 8)?;
    (start == *b"LUKS\xba\xbe\0\x02").then(|| disk.read(KEYSLOT, SLOT))?
}

/// The UUID in a header's file.
pub(crate) fn uuid_of_file(file: &Path) -> io::Result<String> {
    let mut uuid = vec![0; 36];
    File::open(file)?.read_exact_at(&mut uuid, 168)?;
    Ok(String::from_utf8_lossy(&uuid).into_owned())
}

fn proof(dek: &[u8]) -> [u8; PROOF] {
    Sha256::digest([b"proof of ".as_slice(), dek].concat()).into()
}

/// What a volume key makes of a page, and back: enough to see when another key was used.
pub(crate) fn cipher(volume_key: u64, page: u64, bytes: &mut [u8]) {
    let stream = Sha256::digest([volume_key.to_be_bytes(), page.to_be_bytes()].concat());
    for chunk in bytes.chunks_mut(stream.len()) {
        chunk.iter_mut().zip(stream.iter()).for_each(|(byte, with)| *byte ^= with);
    }
}
