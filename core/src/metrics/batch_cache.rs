//! What metrics make once and share: the removal curves of a map, what the model says of a batch's own images. A cache lives
//! as long as one batch, so what it keeps is bounded by it.

use crate::{Error, Result};
use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Values by name.
#[derive(Default)]
pub struct BatchCache(RefCell<BTreeMap<String, Rc<dyn Any>>>);

impl BatchCache {
    /// The value of this name, made by `make` where there is none. The name says all that the value depends on, beside what
    /// the cache itself stands for.
    pub fn get<T: 'static>(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<Rc<T>> {
        let found = self.0.borrow().get(name).cloned();
        let value = match found {
            Some(value) => value,
            None => {
                // Not borrowed: making one value may ask for another.
                let made: Rc<dyn Any> = Rc::new(make()?);
                self.0.borrow_mut().insert(name.into(), made.clone());
                made
            }
        };
        value.downcast::<T>().map_err(|_| Error::new(format!("two kinds of values are called {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_made_once_and_an_error_is_not_kept() {
        let cache = BatchCache::default();
        assert!(cache.get::<i32>("a", || Err(Error::new("no"))).is_err());
        assert_eq!(*cache.get("a", || Ok(*cache.get("b", || Ok(6))? + 1)).unwrap(), 7);
        assert_eq!(*cache.get("a", || Ok(0)).unwrap(), 7);
        assert!(cache.get("a", || Ok("text")).is_err());
    }
}
