# What a person types. Each target first installs what is missing, and says so (tests/install).
.PHONY: help demo test e2e images bench lint soak fuzz

# How long `make fuzz` takes, in seconds.
FUZZ_TIME ?= 3600
# Who wraps keys and where their records lie in `make demo`; without them, a key and a folder of this machine's own.
PROVIDER ?=
STORE ?=
# How hard the programs of the images are linked: fat as in a release, or off, which takes a third of the time.
LTO ?= fat
# With whose keys `make e2e` takes its steps.
PROVIDERS ?= cluster-key transit-s3

help:
	@echo "make demo    the main job, shown on a real kernel: a volume made, opened, refused, destroyed;"
	@echo "             with PROVIDER=transit STORE=s3, or other names, its key from that KMS and its record in that store"
	@echo "make test    every test: unit, keys, key service, each KMS and store, program, simulation, real kernel,"
	@echo "             power cuts, csi-sanity"
	@echo "make e2e     the chart on a real cluster of two nodes: volumes used by Pods while drivers, key service and a node"
	@echo "             fail; once with the cluster key, once with OpenBao and S3"
	@echo "make images  both container images, with what is in them, into target/images; no daemon is needed"
	@echo "make bench   NodeStageVolume beside raw cryptsetup, keys, 100 volumes at once in 64 MiB, 300 cycles,"
	@echo "             unwraps through the key service beside the KMS asked directly, and what asking who holds a"
	@echo "             volume costs"
	@echo "make soak    random schedules of the simulation, until stopped"
	@echo "make fuzz    every reader of foreign bytes, fuzzed for FUZZ_TIME seconds (an hour)"
	@echo "make lint    format, clippy, documentation, licences and bans, and each set of features"

demo:
	@tests/install kernel $(if $(PROVIDER)$(STORE),cloud)
	cargo test --locked --test demo $(if $(PROVIDER)$(STORE),-- $(PROVIDER:%=--provider %) $(STORE:%=--store %))

test:
	@tests/install kernel sanity cloud kubernetes helm
	cargo test --locked --workspace --no-fail-fast

e2e: images
	@tests/install kernel cloud kubernetes helm
	for providers in $(PROVIDERS); do cargo test --locked --test e2e -- --providers $$providers || exit 1; done

# The privileged image's program has no cloud SDK, and a folder of its own, so that the two do not unbuild each other.
images:
	@tests/install kubernetes
	CARGO_PROFILE_RELEASE_LTO=$(LTO) cargo build --locked --release
	CARGO_PROFILE_RELEASE_LTO=$(LTO) cargo build --locked --release --no-default-features \
		--features node,controller,kubernetes --target-dir target/node
	mkdir -p target/images/bin
	cp target/release/coffer target/images/bin/coffer
	cp target/node/release/coffer target/images/bin/coffer-node
	images/build

bench:
	@tests/install kernel cloud kubernetes
	cargo bench --locked --no-fail-fast --bench stage --bench keys --bench storm --bench providers --bench authority

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
	cargo clippy --locked --no-default-features --features node,controller,kubernetes --lib --bins -- -D warnings
	cargo clippy --locked --no-default-features --features keyservice --lib --bins -- -D warnings
	cargo clippy --locked --no-default-features --features keyservice,kubernetes --lib --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
	cargo deny --locked check bans licenses sources
