//! Maps from a transformer's attention and tokens, and relevance under a transformer's rules.

mod agcam;
mod attention;
mod attentiongradcam;
mod attnlrp;
mod beyondintuition;
mod cplrp;
mod gae;
mod gradrollout;
mod integrated;
mod legrad;
mod libragrad;
mod relevance;
mod rollout;
mod stack;
mod tam;
mod tis;
mod tokentm;
mod vitcx;

lightbox_sdk::export!();
