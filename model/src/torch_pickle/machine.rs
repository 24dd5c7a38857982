//! The pickle machine: a stack, a memo and an arena of plain data.

use super::error::PickleError;
use super::globals::Global;
use super::objects::{Object, ObjectId, Objects, StorageReference};
use super::opcodes::*;
use super::tensor::{TensorReference, MAX_DIMENSIONS};
use std::collections::BTreeMap;
use std::io::Read;

/// The description of 10,000 tensors with their optimiser state is about 4 MiB.
const MAX_BYTES: u64 = 64 << 20;
const MAX_OBJECTS: usize = 4_000_000;
/// `_codecs.encode` copies its text; numpy scalars need 16 bytes of it.
const MAX_ENCODED_BYTES: usize = 4096;
const NONE_ID: ObjectId = 0;
const TRUE_ID: ObjectId = 1;
const FALSE_ID: ObjectId = 2;

/// Interprets one pickle and stops right behind its STOP opcode.
pub(super) fn run(reader: &mut impl Read) -> Result<(Objects, ObjectId), PickleError> {
    let mut machine = Machine {
        source: Source { reader, position: 0 },
        objects: Objects {
            arena: vec![Object::None, Object::Bool(true), Object::Bool(false)],
        },
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
    };
    let root = machine.run()?;
    Ok((machine.objects, root))
}

struct Source<'r, R> {
    reader: &'r mut R,
    position: u64,
}

impl<R: Read> Source<'_, R> {
    fn malformed<T>(&self, problem: impl Into<String>) -> Result<T, PickleError> {
        Err(PickleError::Malformed {
            position: self.position,
            problem: problem.into(),
        })
    }

    fn advance(&mut self, bytes: u64) -> Result<(), PickleError> {
        self.position = self.position.saturating_add(bytes);
        if self.position > MAX_BYTES {
            return Err(PickleError::TooLarge {
                limit: MAX_BYTES,
                what: "bytes",
            });
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut bytes = [0; N];
        if let Err(error) = self.reader.read_exact(&mut bytes) {
            return match error.kind() {
                std::io::ErrorKind::UnexpectedEof => self.malformed("it ends before its STOP"),
                _ => Err(error.into()),
            };
        }
        self.advance(N as u64)?;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Memory grows with what is really there, not with what the length claims.
    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, PickleError> {
        let mut bytes = Vec::new();
        self.advance(length)?;
        self.reader.take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return self.malformed(format!("{length} bytes announced, {} left", bytes.len()));
        }
        Ok(bytes)
    }

    fn text(&mut self, length: u64) -> Result<String, PickleError> {
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).or_else(|_| self.malformed("a string is not UTF-8"))
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return String::from_utf8(bytes).or_else(|_| self.malformed("a line is not UTF-8")),
                byte => bytes.push(byte),
            }
        }
    }

    fn parsed<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, PickleError> {
        let line = self.line()?;
        line.parse()
            .or_else(|_| self.malformed(format!("`{}` is not {what}", line.escape_debug())))
    }
}

struct Machine<'r, R> {
    source: Source<'r, R>,
    objects: Objects,
    stack: Vec<ObjectId>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, ObjectId>,
}

impl<R: Read> Machine<'_, R> {
    fn run(&mut self) -> Result<ObjectId, PickleError> {
        loop {
            let opcode = self.source.byte()?;
            if opcode == STOP {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            PROTO => {
                let version = self.source.byte()?;
                if version > 5 {
                    return self
                        .source
                        .malformed(format!("protocol {version} is newer than 5, the newest known"));
                }
            }
            FRAME => {
                self.source.array::<8>()?;
            }
            MARK => self.marks.push(self.stack.len()),
            POP => {
                self.pop()?;
            }
            POP_MARK => {
                self.pop_mark()?;
            }
            DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }
            NONE => self.stack.push(NONE_ID),
            NEWTRUE => self.stack.push(TRUE_ID),
            NEWFALSE => self.stack.push(FALSE_ID),
            INT | LONG | FLOAT | BININT | BININT1 | BININT2 | BINFLOAT | LONG1 | LONG4 => self.number(opcode)?,
            BINUNICODE | SHORT_BINUNICODE | BINUNICODE8 | BINBYTES | SHORT_BINBYTES | BINBYTES8 | BINSTRING
            | SHORT_BINSTRING => {
                self.string(opcode)?;
            }
            EMPTY_LIST => self.push(Object::List(Vec::new()))?,
            EMPTY_TUPLE => self.push(Object::Tuple(Vec::new()))?,
            EMPTY_DICT => self.push(Object::Dict(Vec::new()))?,
            EMPTY_SET => self.push(Object::Set(Vec::new()))?,
            LIST => {
                let items = self.pop_mark()?;
                self.push(Object::List(items))?;
            }
            TUPLE => {
                let items = self.pop_mark()?;
                self.push(Object::Tuple(items))?;
            }
            FROZENSET => {
                let items = self.pop_mark()?;
                self.push(Object::Set(items))?;
            }
            TUPLE1 | TUPLE2 | TUPLE3 => {
                let items = self.pop_many(usize::from(opcode - TUPLE1) + 1)?;
                self.push(Object::Tuple(items))?;
            }
            DICT => {
                let items = self.pop_mark()?;
                self.push(Object::Dict(Vec::new()))?;
                self.extend(items)?;
            }
            APPEND => {
                let items = self.pop_many(1)?;
                self.extend(items)?;
            }
            SETITEM => {
                let items = self.pop_many(2)?;
                self.extend(items)?;
            }
            APPENDS | SETITEMS | ADDITEMS => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            GET | BINGET | LONG_BINGET => {
                let slot = self.memo_slot(opcode)?;
                match self.memo.get(&slot) {
                    Some(&id) => self.stack.push(id),
                    None => {
                        return self
                            .source
                            .malformed(format!("memo slot {slot} is read before it is written"))
                    }
                }
            }
            PUT | BINPUT | LONG_BINPUT => {
                let slot = self.memo_slot(opcode)?;
                self.remember(slot)?;
            }
            MEMOIZE => self.remember(self.memo.len() as u32)?,
            GLOBAL => {
                let module = self.source.line()?;
                let name = self.source.line()?;
                self.global(&module, &name)?;
            }
            STACK_GLOBAL => {
                let names = self.pop_many(2)?;
                match (self.objects.text(names[0]), self.objects.text(names[1])) {
                    (Some(module), Some(name)) => {
                        let (module, name) = (module.to_owned(), name.to_owned());
                        self.global(&module, &name)?;
                    }
                    _ => return self.source.malformed("STACK_GLOBAL without two strings"),
                }
            }
            INST | OBJ => {
                // Both build an instance of a class from its name; INST carries the name itself.
                let global = match opcode {
                    INST => format!("{}.{}", self.source.line()?, self.source.line()?),
                    _ => "an object of a class".to_owned(),
                };
                return Err(PickleError::ForbiddenGlobal { global });
            }
            BINPERSID => {
                let id = self.pop()?;
                self.persistent(id)?;
            }
            PERSID => {
                let id = self.source.line()?;
                return self
                    .source
                    .malformed(format!("persistent id `{}` is not a tensor storage", id.escape_debug()));
            }
            REDUCE | NEWOBJ => {
                let pair = self.pop_many(2)?;
                self.call(pair[0], pair[1])?;
            }
            BUILD => {
                let state = self.pop()?;
                self.build(state)?;
            }
            _ => {
                return self.source.malformed(format!(
                    "opcode 0x{opcode:02x} is unknown or not one that plain data needs"
                ))
            }
        }
        Ok(())
    }

    fn number(&mut self, opcode: u8) -> Result<(), PickleError> {
        let object = match opcode {
            BININT => Object::Int(i64::from(i32::from_le_bytes(self.source.array()?))),
            BININT1 => Object::Int(i64::from(self.source.byte()?)),
            BININT2 => Object::Int(i64::from(u16::from_le_bytes(self.source.array()?))),
            BINFLOAT => Object::Float(f64::from_be_bytes(self.source.array()?)),
            FLOAT => Object::Float(self.source.parsed("a float")?),
            LONG1 => {
                let length = u64::from(self.source.byte()?);
                integer(self.source.bytes(length)?)
            }
            LONG4 => {
                let length = u32::from_le_bytes(self.source.array()?);
                integer(self.source.bytes(u64::from(length))?)
            }
            LONG => {
                let line = self.source.line()?;
                match line.trim_end_matches('L').parse() {
                    Ok(value) => Object::Int(value),
                    Err(_) => return self.source.malformed("a long integer of more than 64 bits in text"),
                }
            }
            // Protocol 0 spells booleans as the integers 00 and 01.
            _ => match self.source.line()?.as_str() {
                "00" => Object::Bool(false),
                "01" => Object::Bool(true),
                line => match line.parse() {
                    Ok(value) => Object::Int(value),
                    Err(_) => {
                        return self
                            .source
                            .malformed(format!("`{}` is not an integer", line.escape_debug()))
                    }
                },
            },
        };
        self.push(object)
    }

    fn string(&mut self, opcode: u8) -> Result<(), PickleError> {
        let length = match opcode {
            SHORT_BINUNICODE | SHORT_BINBYTES | SHORT_BINSTRING => u64::from(self.source.byte()?),
            BINUNICODE8 | BINBYTES8 => u64::from_le_bytes(self.source.array()?),
            _ => u64::from(u32::from_le_bytes(self.source.array()?)),
        };
        let object = match opcode {
            BINBYTES | SHORT_BINBYTES | BINBYTES8 => Object::Bytes(self.source.bytes(length)?),
            _ => Object::Text(self.source.text(length)?),
        };
        self.push(object)
    }

    fn memo_slot(&mut self, opcode: u8) -> Result<u32, PickleError> {
        Ok(match opcode {
            BINGET | BINPUT => u32::from(self.source.byte()?),
            LONG_BINGET | LONG_BINPUT => u32::from_le_bytes(self.source.array()?),
            _ => self.source.parsed("a memo slot")?,
        })
    }

    fn remember(&mut self, slot: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        if self.memo.len() > MAX_OBJECTS {
            return Err(PickleError::TooLarge {
                limit: MAX_OBJECTS as u64,
                what: "memo slots",
            });
        }
        Ok(())
    }

    fn push(&mut self, object: Object) -> Result<(), PickleError> {
        if self.objects.arena.len() >= MAX_OBJECTS {
            return Err(PickleError::TooLarge {
                limit: MAX_OBJECTS as u64,
                what: "objects",
            });
        }
        self.stack.push(self.objects.arena.len() as ObjectId);
        self.objects.arena.push(object);
        Ok(())
    }

    /// Where the items above the newest mark begin; what lies below belongs to an outer object.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<ObjectId, PickleError> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => self.source.malformed("the stack is empty"),
        }
    }

    fn pop(&mut self) -> Result<ObjectId, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<ObjectId>, PickleError> {
        if self.stack.len() < self.floor() + count {
            return self.source.malformed("the stack holds too few objects");
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_mark(&mut self) -> Result<Vec<ObjectId>, PickleError> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => self.source.malformed("no mark on the stack"),
        }
    }

    /// Adds items to the container on top of the stack.
    fn extend(&mut self, items: Vec<ObjectId>) -> Result<(), PickleError> {
        let top = self.top()?;
        match &mut self.objects.arena[top as usize] {
            Object::List(list) | Object::Set(list) => list.extend(items),
            Object::Dict(pairs) if items.len().is_multiple_of(2) => {
                pairs.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])))
            }
            _ => return self.source.malformed("items are added to something that holds none"),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let global = format!("{}.{}", module.escape_debug(), name.escape_debug());
        match Global::find(module, name) {
            Some(found) => self.push(Object::Global(found, global)),
            None => Err(PickleError::ForbiddenGlobal { global }),
        }
    }

    /// Torch's persistent ids: `("storage", type, key, location, elements[, view])`.
    fn persistent(&mut self, id: ObjectId) -> Result<(), PickleError> {
        let storage = match self.objects.get(id) {
            Object::Tuple(fields) => self.storage(fields),
            _ => None,
        };
        match storage {
            Some(storage) => self.push(Object::Storage(storage)),
            None => self.source.malformed("a persistent id is not a tensor storage"),
        }
    }

    fn storage(&self, fields: &[ObjectId]) -> Option<StorageReference> {
        let &[tag, kind, key, _location, elements, ref view @ ..] = fields else {
            return None;
        };
        if self.objects.text(tag) != Some("storage") {
            return None;
        }
        let Object::Global(Global::Storage(dtype), _) = *self.objects.get(kind) else {
            return None;
        };
        self.objects.text(key)?;
        let whole = StorageReference {
            dtype,
            key,
            elements: self.objects.unsigned(elements)?,
            view_offset: 0,
        };
        match view.first().map(|&view| self.objects.get(view)) {
            None | Some(Object::None) => Some(whole),
            Some(Object::Tuple(view)) => {
                let &[_key, offset, size] = view.as_slice() else {
                    return None;
                };
                let (view_offset, elements) = (self.objects.unsigned(offset)?, self.objects.unsigned(size)?);
                let fits = view_offset.checked_add(elements)? <= whole.elements;
                fits.then_some(StorageReference {
                    view_offset,
                    elements,
                    ..whole
                })
            }
            Some(_) => None,
        }
    }

    /// Stands in for a call of an allowed name; data that is only passed through is shared, never copied.
    fn call(&mut self, callee: ObjectId, arguments: ObjectId) -> Result<(), PickleError> {
        let (global, name) = match self.objects.get(callee) {
            Object::Global(global, name) => (*global, name.clone()),
            _ => return self.source.malformed("something that is not a type is called"),
        };
        let Object::Tuple(arguments) = self.objects.get(arguments) else {
            return self
                .source
                .malformed(format!("`{name}` is called without a tuple of arguments"));
        };
        let unexpected = |expected| PickleError::UnexpectedCall {
            global: name.clone(),
            found: format!("{} arguments of other kinds", arguments.len()),
            expected,
        };
        let built = match (global, arguments.as_slice()) {
            (Global::OrderedDict, []) => Object::Dict(Vec::new()),
            (Global::Namespace, []) => Object::Namespace(None),
            (Global::Set, []) => Object::Set(Vec::new()),
            (Global::RebuildTensor, &[storage, offset, shape, stride, ..]) => {
                let tensor = self.tensor(storage, offset, shape, stride);
                Object::Tensor(
                    tensor.ok_or_else(|| unexpected("a view that lies inside its storage, at most 8-dimensional"))?,
                )
            }
            (Global::NumpyScalar, &[dtype, bytes]) => match (self.objects.get(dtype), self.objects.get(bytes)) {
                (Object::NumpyDtype(dtype), Object::Bytes(bytes)) => {
                    numpy_scalar(dtype, bytes).ok_or_else(|| unexpected("a number"))?
                }
                _ => return Err(unexpected("a dtype and bytes")),
            },
            (Global::NumpyDtype, &[code, ..]) => match self.objects.text(code) {
                Some(code) if code.len() <= 4 => Object::NumpyDtype(code.to_owned()),
                _ => return Err(unexpected("a short type code")),
            },
            (Global::Encode, &[text, encoding]) => match (self.objects.text(text), self.objects.text(encoding)) {
                (Some(text), Some("latin1")) if text.len() <= MAX_ENCODED_BYTES => Object::Bytes(
                    text.chars()
                        .map(|c| u8::try_from(u32::from(c)))
                        .collect::<Result<_, _>>()
                        .map_err(|_| unexpected("latin1 text"))?,
                ),
                _ => return Err(unexpected("a short text and `latin1`")),
            },
            // These four are what they are given.
            (Global::RebuildParameter, &[inner, ..])
            | (Global::Size, &[inner])
            | (Global::Device, &[inner, ..])
            | (Global::Set, &[inner]) => {
                self.stack.push(inner);
                return Ok(());
            }
            _ => return Err(unexpected("the arguments that torch.save writes")),
        };
        self.push(built)
    }

    fn tensor(
        &self,
        storage: ObjectId,
        offset: ObjectId,
        shape: ObjectId,
        stride: ObjectId,
    ) -> Option<TensorReference> {
        let Object::Storage(storage) = *self.objects.get(storage) else {
            return None;
        };
        let sizes = |id| match self.objects.get(id) {
            Object::Tuple(items) if items.len() <= MAX_DIMENSIONS => items
                .iter()
                .map(|&item| self.objects.unsigned(item))
                .collect::<Option<Vec<_>>>(),
            _ => None,
        };
        TensorReference::new(storage, self.objects.unsigned(offset)?, &sizes(shape)?, &sizes(stride)?)
    }

    /// Attributes matter for a Namespace alone; an OrderedDict's (torch keeps `_metadata` there) and a dtype's are dropped.
    fn build(&mut self, state: ObjectId) -> Result<(), PickleError> {
        let target = self.top()?;
        let is_dict = matches!(self.objects.get(state), Object::Dict(_));
        let big_endian = match self.objects.get(state) {
            Object::Tuple(items) => items.get(1).and_then(|&order| self.objects.text(order)) == Some(">"),
            _ => false,
        };
        match &mut self.objects.arena[target as usize] {
            Object::Namespace(attributes) if is_dict => *attributes = Some(state),
            Object::Dict(_) => {}
            Object::NumpyDtype(_) if !big_endian => {}
            _ => {
                return self
                    .source
                    .malformed("BUILD sets attributes of something other than a Namespace or a dict")
            }
        }
        Ok(())
    }
}

fn integer(bytes: Vec<u8>) -> Object {
    if bytes.len() > 8 {
        return Object::BigInt(bytes);
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut number = if negative { [0xff; 8] } else { [0; 8] };
    number[..bytes.len()].copy_from_slice(&bytes);
    Object::Int(i64::from_le_bytes(number))
}

fn numpy_scalar(dtype: &str, bytes: &[u8]) -> Option<Object> {
    Some(match dtype.trim_start_matches(['<', '|', '=']) {
        "f8" => Object::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        "f4" => Object::Float(f64::from(f32::from_le_bytes(bytes.try_into().ok()?))),
        "i8" => Object::Int(i64::from_le_bytes(bytes.try_into().ok()?)),
        "i4" => Object::Int(i64::from(i32::from_le_bytes(bytes.try_into().ok()?))),
        "b1" => Object::Bool(*bytes.first()? != 0),
        _ => return None,
    })
}
