//! libFuzzer on `testbed::fuzz::arguments`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::arguments(bytes);
});
