//! libFuzzer on `testbed::fuzz::record`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::record(bytes);
});
