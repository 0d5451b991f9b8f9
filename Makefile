# make test    installs what the tests need (PostgreSQL and more), then runs all of them
# make demo    installs PostgreSQL where there is none, then tells the whole story on a throwaway cluster
# make lint    format and lint checks
# make fuzz    each fuzz target for ten seconds
# make soak    the long versions of the tests
# make bench   measurements
# make release a stripped binary, checked for size and start-up, with checksums, SBOM and licences, in target/dist
# make deb     the Debian package, in target/debian

# CI takes its own nextest profile: no early end, little noise.
profile := $(if $(filter true,$(CI)),ci,default)

.PHONY: test demo lint fuzz soak bench release deb

# What `walden --version` says; empty where there is no git.
export WALDEN_COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)

test:
	tests/install.sh
	@if cargo nextest --version >/dev/null 2>&1; then \
		set -x; cargo nextest run --profile $(profile) && cargo test --doc; \
	else \
		echo "cargo-nextest is not installed; using cargo test, which is slower" >&2; \
		set -x; cargo test -- --test-threads=2; \
	fi

lint:
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings

fuzz:
	fuzz/run

soak: export WALDEN_SOAK = 1
soak:
	tests/install.sh
	@if cargo nextest --version >/dev/null 2>&1; then \
		set -x; cargo nextest run --cargo-profile release --profile soak; \
	else \
		set -x; cargo test -- --test-threads=2; \
	fi
	$(MAKE) deb
	tests/quickstart.sh
	tests/package.sh
	tests/oldest.sh

demo:
	tests/install.sh --postgres-only
	cargo run --quiet -- demo

bench:
	benches/peers.sh
	cargo bench --bench codec --bench index
	WALDEN=$${CARGO_TARGET_DIR:-target}/release/walden cargo bench --bench many

release:
	packaging/build.sh
	packaging/release.sh

deb:
	packaging/build.sh
	packaging/deb.sh
