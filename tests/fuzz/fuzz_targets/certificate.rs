//! libFuzzer on `testbed::fuzz::certificate`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::certificate(bytes);
});
