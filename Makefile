# What a person types. Each target first installs what is missing, and says so (tests/install).
.PHONY: help demo test bench lint golden

help:
	@echo "make demo    the main job, shown on a real kernel: a volume made, opened, refused, destroyed"
	@echo "make test    every test: unit, keys, key service, program, real kernel, power cuts, csi-sanity"
	@echo "make bench   NodeStageVolume beside raw cryptsetup, in one run"
	@echo "make lint    format, clippy, documentation, licences and bans, and each set of features"

demo:
	@tests/install kernel
	cargo test --locked --test demo

test:
	@tests/install kernel sanity
	cargo test --locked --workspace --no-fail-fast

bench:
	@tests/install kernel
	cargo bench --locked --bench stage

lint:
	@tests/install deny
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --features node --lib --bins -- -D warnings
	cargo clippy --locked --no-default-features --features keyservice --lib --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
	cargo deny --locked check bans licenses sources
