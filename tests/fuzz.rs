//! The fuzz targets of the library, without a fuzzer: see `scripts/fuzz`.

#[path = "fuzz/library.rs"]
mod library;
#[path = "fuzz/target.rs"]
mod target;

#[test]
fn targets_hold_on_seeds_and_near_them() {
    target::try_all(library::TARGETS);
    library::forget_stores();
}
