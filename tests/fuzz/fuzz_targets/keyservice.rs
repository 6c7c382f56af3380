//! libFuzzer on `testbed::fuzz::keyservice`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::keyservice(bytes);
});
