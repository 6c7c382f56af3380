//! libFuzzer on `testbed::fuzz::identity`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::identity(bytes);
});
