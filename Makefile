# What a person types. Each target first installs what is missing, and says so (tests/install).
.PHONY: help demo test bench lint soak fuzz

# How long `make fuzz` takes, in seconds.
FUZZ_TIME ?= 3600
# Who wraps keys and where their records lie in `make demo`; without them, a key and a folder of this machine's own.
PROVIDER ?=
STORE ?=

help:
	@echo "make demo    the main job, shown on a real kernel: a volume made, opened, refused, destroyed;"
	@echo "             with PROVIDER=transit STORE=s3, or other names, its key from that KMS and its record in that store"
	@echo "make test    every test: unit, keys, key service, each KMS and store, program, simulation, real kernel,"
	@echo "             power cuts, csi-sanity"
	@echo "make bench   NodeStageVolume beside raw cryptsetup, keys, 100 volumes at once in 64 MiB, 300 cycles,"
	@echo "             and unwraps through the key service beside the KMS asked directly"
	@echo "make soak    random schedules of the simulation, until stopped"
	@echo "make fuzz    every reader of foreign bytes, fuzzed for FUZZ_TIME seconds (an hour)"
	@echo "make lint    format, clippy, documentation, licences and bans, and each set of features"

demo:
	@tests/install kernel $(if $(PROVIDER)$(STORE),cloud)
	cargo test --locked --test demo $(if $(PROVIDER)$(STORE),-- $(PROVIDER:%=--provider %) $(STORE:%=--store %))

test:
	@tests/install kernel sanity cloud
	cargo test --locked --workspace --no-fail-fast

bench:
	@tests/install kernel cloud
	cargo bench --locked --no-fail-fast --bench stage --bench keys --bench storm --bench providers

soak:
	cargo test --locked --test simulation -- --soak

fuzz:
	@tests/install fuzz
	tests/fuzz/run $(FUZZ_TIME)

lint:
	@tests/install deny
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --features node --lib --bins -- -D warnings
	cargo clippy --locked --no-default-features --features keyservice --lib --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
	cargo deny --locked check bans licenses sources
