//! libFuzzer on `testbed::fuzz::mark`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::mark(bytes);
});
