//! `#[derive(Params)]`: a struct's fields as the parameters of an explainer, a model or a metric.
//!
//! Every field is a parameter of the field's name, whose type implements `lightbox_sdk::params::ParamField`. The doc
//! comment is the text that users read; without one it is the type's own. `#[param(...)]` takes
//!
//! - `default = EXPRESSION`, which every field but a flattened one needs,
//! - `range = (LEAST, GREATEST)`, for numbers,
//! - `unit = "px"`,
//! - `flatten`: the field is itself a set of parameters, which stand in its place.

use proc_macro::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Expr, Field, Fields, Lit, LitStr, Meta, parse_macro_input};

/// See the crate's documentation, and `lightbox_sdk::params::Params` for an example.
#[proc_macro_derive(Params, attributes(param))]
pub fn params(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}

/// What `#[param(...)]` of a field says.
#[derive(Default)]
struct Attributes {
    default: Option<Expr>,
    range: Option<Expr>,
    unit: Option<LitStr>,
    flatten: bool,
}

impl Attributes {
    fn of(field: &Field) -> syn::Result<Self> {
        let mut found = Attributes::default();
        for attribute in field.attrs.iter().filter(|a| a.path().is_ident("param")) {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("default") {
                    found.default = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("range") {
                    found.range = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("unit") {
                    found.unit = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("flatten") {
                    found.flatten = true;
                } else {
                    return Err(meta.error("default, range, unit or flatten expected"));
                }
                Ok(())
            })?;
        }
        Ok(found)
    }
}

/// The doc comment's lines as one text.
fn documentation(field: &Field) -> String {
    let line = |attribute: &syn::Attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value().trim().to_string()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    field.attrs.iter().filter_map(line).collect::<Vec<_>>().join(" ")
}

fn expand(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(syn::Error::new(input.span(), "parameters are the fields of a struct"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(syn::Error::new(input.span(), "parameters are named fields"));
    };
    let (mut specs, mut reads) = (Vec::new(), Vec::new());
    for field in &fields.named {
        let (attributes, kind) = (Attributes::of(field)?, &field.ty);
        let Some(ident) = &field.ident else { continue };
        let name = ident.to_string();
        let text = documentation(field);
        if attributes.flatten {
            specs.push(quote_spanned!(kind.span()=> specs.extend(<#kind as ::lightbox_sdk::params::Params>::specs());));
            reads.push(quote_spanned!(kind.span()=> #ident: <#kind as ::lightbox_sdk::params::Params>::read(values)?,));
            continue;
        }
        let Some(default) = attributes.default else {
            return Err(syn::Error::new(field.span(), "a parameter needs a default: #[param(default = ...)]"));
        };
        let range = match attributes.range {
            Some(range) => quote!(::core::option::Option::Some(#range)),
            None => quote!(::core::option::Option::None),
        };
        let unit = attributes.unit.map_or_else(String::new, |u| u.value());
        specs.push(quote_spanned!(kind.span()=>
            specs.push(::lightbox_sdk::params::ParamSpec::of::<#kind>(#name, #default, #range, #unit, #text));
        ));
        reads.push(quote_spanned!(kind.span()=> #ident: values.field::<#kind>(#name)?,));
    }
    let name = &input.ident;
    let (impls, types, filter) = input.generics.split_for_impl();
    Ok(quote! {
        impl #impls ::lightbox_sdk::params::Params for #name #types #filter {
            fn specs() -> ::std::vec::Vec<::lightbox_sdk::params::ParamSpec> {
                let mut specs = ::std::vec::Vec::new();
                #(#specs)*
                specs
            }

            fn read(values: &::lightbox_sdk::params::ParamValues) -> ::lightbox_sdk::Result<Self> {
                ::core::result::Result::Ok(Self { #(#reads)* })
            }
        }
    })
}
