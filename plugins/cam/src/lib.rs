//! Class activation maps: weighted sums of a layer's feature maps.

mod gradcam;

lightbox_sdk::export!();
