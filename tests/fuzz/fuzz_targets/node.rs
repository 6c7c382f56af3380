//! libFuzzer on `testbed::fuzz::node`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::node(bytes);
});
