//! Every example of docs/wire.md is read into its type and printed back, so that the page is what crosses.

use lightbox_sdk::spec::{ExplainerSpec, ModelSpec, Output, Plan};
use lightbox_sdk::wire::{
    BindMessage, ExplainMessage, FitBatchMessage, FitMessage, HOST_CALLS, MapsMessage, NamedMessage, RequestMessage,
    ResponseMessage,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn there_and_back<T: Serialize + DeserializeOwned>(text: &str) -> Value {
    let read: T = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    serde_json::to_value(&read).unwrap()
}

#[test]
fn every_example_is_read_and_printed() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/wire.md")).unwrap();
    let mut seen = Vec::new();
    for example in page.split("```json ").skip(1) {
        let (name, rest) = example.split_once('\n').unwrap();
        let text = rest.split("```").next().unwrap();
        let back = match name {
            "ModelSpec" => there_and_back::<ModelSpec>(text),
            "Output" => there_and_back::<Output>(text),
            "ExplainerSpec" => there_and_back::<ExplainerSpec>(text),
            "BindMessage" => there_and_back::<BindMessage>(text),
            "Plan" => there_and_back::<Plan>(text),
            "ExplainMessage" => there_and_back::<ExplainMessage>(text),
            "MapsMessage" => there_and_back::<MapsMessage>(text),
            "FitMessage" => there_and_back::<FitMessage>(text),
            "NamedMessage" => there_and_back::<NamedMessage>(text),
            "RequestMessage" => there_and_back::<RequestMessage>(text),
            "ResponseMessage" => there_and_back::<ResponseMessage>(text),
            "FitBatchMessage" => there_and_back::<FitBatchMessage>(text),
            "Frame" => there_and_back::<lightbox::remote::channel::Frame>(text),
            "Error" => there_and_back::<lightbox_sdk::Error>(text),
            other => panic!("an example of {other}, which is no message"),
        };
        assert_eq!(back, serde_json::from_str::<Value>(text).unwrap(), "{name}");
        seen.push(name.to_string());
    }
    seen.dedup();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 14, "{seen:?}");
    assert!(HOST_CALLS.iter().all(|call| page.contains(&format!("| `{call}` |"))));
}
