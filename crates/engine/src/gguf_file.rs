//! A GGUF file: which tensors it holds, how they are packed, and their bytes.
//!
//! The format is that of ggml-org/ggml, `docs/gguf.md`. candle reads it too; here nothing that a file says takes memory or time before it is compared
//! with how long the file is, and what is wrong is said with the name of the tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Take};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use atelier_kernels::gguf::BlockFormat;
use candle_core::{DType, Device, Tensor};

use super::EngineError;
use super::tensor_table::MAX_TENSORS;

/// What every such file begins with.
const MAGIC: &[u8; 4] = b"GGUF";
/// The vocabulary of a language model takes some MB of a header.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Of names and keys, as the format has it.
const MAX_NAME_BYTES: u64 = (1 << 16) - 1;
const MAX_KEYS: u64 = 1 << 16;
/// Of lists in lists.
const MAX_DEPTH: u32 = 4;
const MAX_DIMENSIONS: u32 = 4;
/// Where no key says how values are aligned.
const ALIGNMENT: u64 = 32;

/// How a file keeps a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Whole(DType),
    Blocks(BlockFormat),
}

/// A tensor in its file.
#[derive(Debug)]
pub(super) struct GgufTensor {
    pub(super) format: Format,
    /// As here: rows before columns.
    pub(super) shape: Vec<usize>,
    /// Behind the table of tensors.
    offset: u64,
    bytes: usize,
}

/// The table of a file.
pub(super) struct GgufFile {
    path: PathBuf,
    file: File,
    /// `general.architecture`: the model, as who converted it names it.
    architecture: Option<String>,
    tensors: BTreeMap<String, GgufTensor>,
    /// Where the values begin.
    start: u64,
}

/// Whether a file is called so, or begins as GGUF files do. One that cannot be read does not.
pub(super) fn is_gguf(path: &Path) -> bool {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return true;
    }
    let mut beginning = [0; MAGIC.len()];
    File::open(path).and_then(|file| file.read_exact_at(&mut beginning, 0)).is_ok() && beginning == *MAGIC
}

impl GgufFile {
    /// Reads the table of what is in the file.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] when it is no whole GGUF file, or keeps a tensor in a format that is not read.
    pub(super) fn open(path: &Path) -> Result<Self, EngineError> {
        let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
        let unreadable = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
        let file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let header = Reader::new(file.try_clone().map_err(unreadable)?, length).read();
        let Header { architecture, tensors, start, alignment } = header.map_err(wrong)?;
        for (name, tensor) in &tensors {
            let end = start.checked_add(tensor.offset).and_then(|first| first.checked_add(tensor.bytes as u64));
            if end.is_none_or(|end| end > length) {
                let problem = format!("is not whole: {} ends behind its {length} bytes; download it again", shown(name));
                return Err(wrong(problem));
            }
        }
        check_places(&tensors, alignment).map_err(wrong)?;
        Ok(Self { path: path.to_owned(), file, architecture, tensors, start })
    }

    pub(super) fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// What the file says it is of, for messages.
    pub(super) fn architecture(&self) -> String {
        self.architecture.as_deref().map_or_else(|| "a model that it does not name".to_owned(), shown)
    }

    /// A tensor's bytes. May be called from several threads at once.
    ///
    /// # Errors
    /// When they cannot be read, or the file has become shorter.
    fn bytes(&self, tensor: &GgufTensor) -> Result<Vec<u8>, EngineError> {
        let mut bytes = vec![0; tensor.bytes];
        let read = self.file.read_exact_at(&mut bytes, self.start + tensor.offset);
        read.map_err(|error| self.wrong(error.to_string())).map(|()| bytes)
    }

    /// A tensor whose values are made whole, in the format `dtype`.
    ///
    /// # Errors
    /// When it cannot be read, or there is no memory.
    pub(super) fn unpacked(&self, tensor: &GgufTensor, (dtype, device): (DType, &Device)) -> Result<Tensor, EngineError> {
        let bytes = self.bytes(tensor)?;
        let shape = tensor.shape.as_slice();
        let whole = match tensor.format {
            Format::Whole(kept) => Tensor::from_raw_buffer(&bytes, kept, shape, &Device::Cpu)?,
            Format::Blocks(blocks) => Tensor::from_vec(blocks.unpack(&bytes), shape, &Device::Cpu)?,
        };
        Ok(whole.to_dtype(dtype)?.to_device(device)?)
    }

    /// The blocks of a matrix as they are: (rows, bytes of a row), u8.
    ///
    /// # Errors
    /// When they cannot be read, or there is no memory.
    pub(super) fn packed(&self, tensor: &GgufTensor, device: &Device) -> Result<Tensor, EngineError> {
        let rows = tensor.shape.first().copied().unwrap_or(1);
        let bytes = self.bytes(tensor)?;
        Ok(Tensor::from_vec(bytes, (rows, tensor.bytes / rows), &Device::Cpu)?.to_device(device)?)
    }

    /// The error of a file of another model; `problem`: what does not fit.
    pub(super) fn of_another_model(&self, problem: &str) -> EngineError {
        self.wrong(format!("is GGUF of {}, and not of this model: {problem}", self.architecture()))
    }

    /// An error of this file.
    pub(super) fn wrong(&self, problem: String) -> EngineError {
        EngineError::Checkpoint { path: self.path.clone(), problem }
    }
}

/// A name out of a file, so that it can stand in a message.
pub(super) fn shown(name: &str) -> String {
    const SHOWN: usize = 96;
    let cut: String = name.chars().take(SHOWN).collect();
    if cut.len() < name.len() { format!("{cut:?}…") } else { format!("{cut:?}") }
}

/// A shape, as converters may write it: some leave leading ones out.
pub(super) fn without_leading_ones(shape: &[usize]) -> &[usize] {
    &shape[shape.iter().take_while(|side| **side == 1).count()..]
}

/// What stands before the values.
struct Header {
    architecture: Option<String>,
    tensors: BTreeMap<String, GgufTensor>,
    start: u64,
    /// `general.alignment`.
    alignment: u64,
}

/// Reads a header from its beginning on, and counts.
struct Reader {
    source: Take<BufReader<File>>,
    at: u64,
    /// Whether the file goes on where the source ends.
    is_cut: bool,
}

type Parsed<T> = Result<T, String>;

impl Reader {
    fn new(file: File, length: u64) -> Self {
        Self { source: BufReader::new(file).take(length.min(MAX_HEADER_BYTES)), at: 0, is_cut: length > MAX_HEADER_BYTES }
    }

    fn read(mut self) -> Parsed<Header> {
        if &self.array::<4>()? != MAGIC {
            return Err("is no GGUF file: it does not begin with GGUF".to_owned());
        }
        match self.u32()? {
            2 | 3 => {}
            // Its numbers the other way round.
            version if (2..=3).contains(&version.swap_bytes()) => {
                return Err("is GGUF for big-endian machines, which is not read; take the usual file".to_owned());
            }
            version => return Err(format!("is GGUF of version {version}, which is not read; 2 and 3 are")),
        }
        let tensor_count = self.u64()?;
        let key_count = self.u64()?;
        if tensor_count > MAX_TENSORS as u64 {
            return Err(format!("has {tensor_count} tensors; no model has more than {MAX_TENSORS}"));
        }
        if key_count > MAX_KEYS {
            return Err(format!("has {key_count} keys of metadata; {MAX_KEYS} are allowed"));
        }
        let mut architecture = None;
        let mut alignment = ALIGNMENT;
        for _ in 0..key_count {
            let key = self.string()?;
            let kind = self.u32()?;
            match (key.as_str(), kind) {
                ("general.architecture", STRING) => architecture = Some(self.string()?),
                ("general.alignment", UINT32) => alignment = u64::from(self.u32()?),
                _ => self.skip_value(kind, 0)?,
            }
        }
        if !alignment.is_power_of_two() {
            return Err(format!("has a general.alignment of {alignment}, which must be a power of two"));
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = self.string()?;
            let tensor = self.tensor(&name)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(format!("has {} twice", shown(&name)));
            }
        }
        Ok(Header { architecture, tensors, start: self.at.next_multiple_of(alignment), alignment })
    }

    fn tensor(&mut self, name: &str) -> Parsed<GgufTensor> {
        let dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!("{} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed", shown(name)));
        }
        // The first one is that whose values lie side by side.
        let mut shape = (0..dimensions).map(|_| self.u64()).collect::<Parsed<Vec<_>>>()?;
        shape.reverse();
        let number = self.u32()?;
        let offset = self.u64()?;
        let format = format(number).ok_or_else(|| {
            let blocks = BlockFormat::ALL.map(|format| format.name().to_uppercase()).join(", ");
            let found = named(number);
            format!("keeps {} as {found}; read are {blocks}, F16, BF16 and F32", shown(name))
        })?;
        let (values, bytes) = match format {
            Format::Whole(dtype) => (1, dtype.size_in_bytes()),
            Format::Blocks(blocks) => (blocks.values(), blocks.bytes()),
        };
        let columns = shape.last().copied().unwrap_or_default();
        if !columns.is_multiple_of(values as u64) {
            return Err(format!("{} has rows of {columns} values, which are no whole blocks of {values}", shown(name)));
        }
        let shape = shape.into_iter().map(|side| usize::try_from(side).ok().filter(|side| *side > 0));
        let shape: Option<Vec<usize>> = shape.collect();
        let count = shape.as_ref().and_then(|shape| shape.iter().try_fold(1_usize, |all, side| all.checked_mul(*side)));
        let bytes = count.and_then(|count| (count / values).checked_mul(bytes));
        match (shape, bytes) {
            (Some(shape), Some(bytes)) => Ok(GgufTensor { format, shape, offset, bytes }),
            _ => Err(format!("{} has no size that a tensor can have", shown(name))),
        }
    }

    /// A value that nothing reads.
    fn skip_value(&mut self, kind: u32, depth: u32) -> Parsed<()> {
        match (kind, fixed_bytes(kind)) {
            (STRING, _) => {
                let bytes = self.u64()?;
                self.skip(bytes)
            }
            (LIST, _) if depth == MAX_DEPTH => Err(format!("has lists in lists, more than {MAX_DEPTH} deep")),
            (LIST, _) => {
                let kind = self.u32()?;
                let count = self.u64()?;
                match fixed_bytes(kind) {
                    Some(bytes) => self.skip(count.saturating_mul(bytes)),
                    // Each takes some bytes of the header at least, which ends.
                    None => (0..count).try_for_each(|_| self.skip_value(kind, depth + 1)),
                }
            }
            (_, Some(bytes)) => self.skip(bytes),
            (kind, None) => Err(format!("has metadata of the kind {kind}, which GGUF has not")),
        }
    }

    fn skip(&mut self, bytes: u64) -> Parsed<()> {
        let mut left = bytes;
        while left > 0 {
            let there = self.source.fill_buf().map_err(|error| format!("cannot be read: {error}"))?.len() as u64;
            if there == 0 {
                return Err(self.ended());
            }
            let now = there.min(left);
            self.source.consume(now as usize);
            left -= now;
        }
        self.at += bytes;
        Ok(())
    }

    fn string(&mut self) -> Parsed<String> {
        let bytes = self.u64()?;
        if bytes > MAX_NAME_BYTES {
            return Err(format!("has a name of {bytes} bytes; {MAX_NAME_BYTES} are allowed"));
        }
        let mut name = vec![0; bytes as usize];
        self.fill(&mut name)?;
        String::from_utf8(name).map_err(|_| "has a name that is not UTF-8".to_owned())
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const BYTES: usize>(&mut self) -> Parsed<[u8; BYTES]> {
        let mut bytes = [0; BYTES];
        self.fill(&mut bytes).map(|()| bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Parsed<()> {
        let read = self.source.read_exact(bytes);
        self.at += bytes.len() as u64;
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.ended(),
            _ => format!("cannot be read: {error}"),
        })
    }

    fn ended(&self) -> String {
        if self.is_cut {
            format!("has a header of more than {} MiB, which no model has", MAX_HEADER_BYTES >> 20)
        } else {
            "is not whole: it ends in its header; download it again".to_owned()
        }
    }
}

/// Each tensor begins at a multiple of `general.alignment`, behind the one before it: bytes of another's would be read as its own in silence.
fn check_places(tensors: &BTreeMap<String, GgufTensor>, alignment: u64) -> Parsed<()> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_unstable_by_key(|(_, tensor)| tensor.offset);
    let mut free = 0;
    for (name, tensor) in in_order {
        let offset = tensor.offset;
        let begins = format!("is damaged: {} begins at byte {offset} of the values", shown(name));
        if !offset.is_multiple_of(alignment) {
            return Err(format!("{begins}, which is no multiple of {alignment}, its general.alignment; convert it again"));
        }
        if offset < free {
            return Err(format!("{begins}, where those before it end at {free}; convert it again"));
        }
        free = offset + tensor.bytes as u64;
    }
    Ok(())
}

/// Kinds of metadata (`gguf_metadata_value_type`).
const UINT32: u32 = 4;
const STRING: u32 = 8;
const LIST: u32 = 9;

/// Bytes of a kind of metadata, where all of it have as many.
fn fixed_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// By the numbers of `ggml_type`.
fn format(number: u32) -> Option<Format> {
    match number {
        0 => Some(Format::Whole(DType::F32)),
        1 => Some(Format::Whole(DType::F16)),
        30 => Some(Format::Whole(DType::BF16)),
        _ => BlockFormat::ALL.into_iter().find(|format| format.number() == number).map(Format::Blocks),
    }
}

/// The names of formats that are not read.
fn named(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16..=23 | 29 => "one of the IQ formats",
        24..=27 => "integers",
        28 => "F64",
        34 | 35 => "one of the TQ formats",
        _ => return format!("format {number}, which ggml has not"),
    };
    name.to_owned()
}
