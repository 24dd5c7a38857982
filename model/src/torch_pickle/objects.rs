//! What a pickle describes, as plain data in one arena: references are indices, so neither depth nor cycles of a hostile
//! file can exhaust the stack.

use super::globals::Global;
use super::tensor::TensorReference;
use ::safetensors::Dtype;

/// Index of an object in the arena.
pub(super) type ObjectId = u32;

#[derive(Debug)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, little-endian two's complement.
    BigInt(Vec<u8>),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<ObjectId>),
    Tuple(Vec<ObjectId>),
    Set(Vec<ObjectId>),
    Dict(Vec<(ObjectId, ObjectId)>),
    /// Its attributes, once they were set.
    Namespace(Option<ObjectId>),
    Global(Global, String),
    Storage(StorageReference),
    Tensor(TensorReference),
    /// `f8`, `i4`, …
    NumpyDtype(String),
}

/// A typed run of numbers somewhere in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct StorageReference {
    pub dtype: Dtype,
    /// The [`Object::Text`] that names it.
    pub key: ObjectId,
    /// Elements of the whole storage.
    pub elements: usize,
    /// First element, where an old file describes a view of another storage.
    pub view_offset: usize,
}

/// All objects of one pickle.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) arena: Vec<Object>,
}

impl Objects {
    pub(super) fn get(&self, id: ObjectId) -> &Object {
        &self.arena[id as usize]
    }

    pub(super) fn text(&self, id: ObjectId) -> Option<&str> {
        match self.get(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn unsigned(&self, id: ObjectId) -> Option<usize> {
        match self.get(id) {
            Object::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// One object of a torch file: a view that can be walked.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    pub(super) objects: &'a Objects,
    pub(super) id: ObjectId,
}

impl<'a> Value<'a> {
    fn object(&self) -> &'a Object {
        self.objects.get(self.id)
    }

    fn at(&self, id: ObjectId) -> Self {
        Self {
            objects: self.objects,
            id,
        }
    }

    /// What this is, in words for messages.
    pub fn kind(&self) -> &'static str {
        match self.object() {
            Object::None => "None",
            Object::Bool(_) => "a bool",
            Object::Int(_) | Object::BigInt(_) => "an int",
            Object::Float(_) => "a float",
            Object::Text(_) => "a string",
            Object::Bytes(_) => "bytes",
            Object::List(_) => "a list",
            Object::Tuple(_) => "a tuple",
            Object::Set(_) => "a set",
            Object::Dict(_) => "a dict",
            Object::Namespace(_) => "an argparse.Namespace",
            Object::Global(..) => "a type",
            Object::Storage(_) => "a storage",
            Object::Tensor(_) => "a tensor",
            Object::NumpyDtype(_) => "a numpy dtype",
        }
    }

    /// Keys and values of a dict, or attributes of a namespace, in the file's order.
    pub fn entries(&self) -> Option<impl Iterator<Item = (Value<'a>, Value<'a>)> + 'a> {
        let this = *self;
        let pairs = match this.object() {
            Object::Dict(pairs) => pairs.as_slice(),
            Object::Namespace(Some(attributes)) => match this.objects.get(*attributes) {
                Object::Dict(pairs) => pairs.as_slice(),
                _ => return None,
            },
            Object::Namespace(None) => &[],
            _ => return None,
        };
        Some(pairs.iter().map(move |&(key, value)| (this.at(key), this.at(value))))
    }

    /// The value a dict or namespace holds under a text key (the last one, as in Python).
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.entries()?
            .filter(|(name, _)| name.as_str() == Some(key))
            .last()
            .map(|(_, value)| value)
    }

    /// The members of a list or tuple.
    pub fn items(&self) -> Option<impl Iterator<Item = Value<'a>> + 'a> {
        let this = *self;
        match this.object() {
            Object::List(items) | Object::Tuple(items) => Some(items.iter().map(move |&id| this.at(id))),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&'a str> {
        self.objects.text(self.id)
    }

    /// An integer of at most 64 bits.
    pub fn as_i64(&self) -> Option<i64> {
        match self.object() {
            Object::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// A float or an integer.
    pub fn as_f64(&self) -> Option<f64> {
        match self.object() {
            Object::Float(value) => Some(*value),
            Object::Int(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// A bool.
    pub fn as_bool(&self) -> Option<bool> {
        match self.object() {
            Object::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Where a tensor's numbers are; [`super::TorchFile::read`] fetches them.
    pub fn as_tensor(&self) -> Option<&'a TensorReference> {
        match self.object() {
            Object::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }
}
