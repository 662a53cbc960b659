//! Attributions from the gradient at the image.

mod deconvolution;
mod deeplift;
mod gradientshap;
mod guidedbackprop;
mod guidedgradcam;
mod input;
mod inputxgradient;
mod integratedgradients;
mod lrp;
mod saliency;
mod smoothgrad;
mod smoothgradsq;
mod smoothing;
mod vargrad;
mod xrai;

lightbox_sdk::export!();
