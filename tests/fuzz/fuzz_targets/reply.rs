//! libFuzzer on `testbed::fuzz::reply`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    testbed::fuzz::reply(bytes);
});
