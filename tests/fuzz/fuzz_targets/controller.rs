//! libFuzzer on `testbed::fuzz::controller`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::controller(bytes);
});
