//! libFuzzer on `testbed::fuzz::header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::header(bytes);
});
