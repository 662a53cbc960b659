//! Methods that change the image and look at what the score does.

mod cover;
mod extremal;
mod kernelshap;
mod lime;
mod meaningful;
mod occlusion;
mod partitionshap;
mod regress;
mod rise;

lightbox_sdk::export!();
