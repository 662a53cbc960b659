//! Maps from a transformer's attention.

mod attention;

lightbox_sdk::export!();
