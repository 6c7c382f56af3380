//! libFuzzer on `testbed::fuzz::configuration`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::configuration(bytes);
});
