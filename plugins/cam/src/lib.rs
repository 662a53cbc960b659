//! Class activation maps: weighted sums of a layer's feature maps.

mod ablationcam;
mod cam;
mod concept;
mod eigencam;
mod eigengradcam;
mod elementwise;
mod fem;
mod finercam;
mod fullgrad;
mod gradcam;
mod gradcampp;
mod hirescam;
mod iscam;
mod kpcacam;
mod layer;
mod layercam;
mod probe;
mod randomcam;
mod refinecam;
mod scorecam;
mod segeigencam;
mod shapleycam;
mod smoothgradcampp;
mod sscam;
mod xgradcam;

lightbox_sdk::export!();
