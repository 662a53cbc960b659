lightbox_sdk::export!();
