//! libFuzzer on `testbed::fuzz::keyfile`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::keyfile(bytes);
});
