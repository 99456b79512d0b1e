//! GGUF files that are broken, or say what cannot be: refused in words, before anything takes memory.

use std::fs;

use atelier_engine::tensor_file::check;

const STRING: u32 = 8;
const LIST: u32 = 9;
const UINT32: u32 = 4;
const Q4_0: u32 = 2;

/// A file of these keys (their kinds and bytes) and tensors (sides, format, place), with so many bytes of values.
#[derive(Clone)]
struct File {
    version: u32,
    keys: Vec<(&'static str, u32, Vec<u8>)>,
    tensors: Vec<(&'static str, Vec<u64>, u32, u64)>,
    values: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn good() -> File {
    let list = [&STRING.to_le_bytes()[..], &2_u64.to_le_bytes(), &text("one"), &text("two")].concat();
    File {
        version: 3,
        keys: vec![
            ("general.architecture", STRING, text("flux")),
            ("test.list", LIST, list),
            ("test.flag", 7, vec![1]),
            ("general.alignment", UINT32, 64_u32.to_le_bytes().to_vec()),
        ],
        tensors: vec![("img_in.weight", vec![64, 3], Q4_0, 0), ("img_in.bias", vec![3], 0, 128)],
        values: 140,
    }
}

/// What a language model has.
pub(crate) fn language_model() -> Vec<u8> {
    let tensors = vec![("token_embd.weight", vec![32, 4], Q4_0, 0), ("blk.0.attn_q.weight", vec![32], Q4_0, 96)];
    File { keys: vec![("general.architecture", STRING, text("qwen3"))], tensors, ..good() }.bytes()
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.keys.len() as u64].map(u64::to_le_bytes).concat();
        let mut bytes = [b"GGUF", &self.version.to_le_bytes()[..], &counts].concat();
        for (key, kind, value) in &self.keys {
            bytes.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        for (name, sides, format, place) in &self.tensors {
            bytes.extend([text(name), (sides.len() as u32).to_le_bytes().to_vec()].concat());
            bytes.extend(sides.iter().flat_map(|side| side.to_le_bytes()));
            bytes.extend([format.to_le_bytes().to_vec(), place.to_le_bytes().to_vec()].concat());
        }
        bytes.resize(bytes.len().next_multiple_of(64) + self.values, 0);
        bytes
    }

    fn with_key(mut self, kind: u32, value: Vec<u8>) -> Self {
        self.keys.push(("test.more", kind, value));
        self
    }

    fn with_tensor(mut self, sides: &[u64], format: u32, place: u64) -> Self {
        self.tensors.push(("test.tensor", sides.to_vec(), format, place));
        self
    }
}

/// What is wrong with a file of these bytes, if something is.
fn problem(bytes: &[u8]) -> Option<String> {
    let file = tempfile::NamedTempFile::with_suffix(".gguf").expect("a file");
    fs::write(file.path(), bytes).expect("writes");
    let problem = check(file.path()).err()?.to_string();
    assert!(problem.contains(&file.path().display().to_string()), "{problem}");
    Some(problem)
}

#[test]
fn broken_gguf_files_are_refused_in_words() {
    assert_eq!(problem(&good().bytes()), None);
    let counted = |at: usize, count: u64| {
        let mut bytes = good().bytes();
        bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
        bytes
    };
    let nested = [LIST.to_le_bytes().to_vec(), 1_u64.to_le_bytes().to_vec()].concat();
    let many = |kind: u32| [kind.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat();
    let mut twice = good();
    twice.tensors.push(twice.tensors[0].clone());
    let mut unaligned = good();
    unaligned.keys[3].2 = vec![0; 4];
    let mut odd = good();
    odd.tensors[0].3 += 1;
    let mut shared = good();
    shared.tensors[1].3 = shared.tensors[0].3;
    let whole = good().bytes();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("does not begin with GGUF", [b"GGML", &whole[4..]].concat()),
        ("of version 1, which is not read; 2 and 3 are", File { version: 1, ..good() }.bytes()),
        ("for big-endian machines", File { version: 3 << 24, ..good() }.bytes()),
        ("is not whole: \"img_in.bias\" ends behind its", whole[..whole.len() - 1].to_vec()),
        ("18446744073709551615 tensors; no model has more than", counted(8, u64::MAX)),
        ("\"\" has 0 dimensions; 1 to 4 are allowed", counted(8, 30_000)),
        ("keys of metadata", counted(16, u64::MAX / 2)),
        ("has a name of 18446744073709551615 bytes", counted(24, u64::MAX)),
        ("it ends in its header", good().with_key(STRING, u64::MAX.to_le_bytes().to_vec()).bytes()),
        ("it ends in its header", good().with_key(LIST, many(12)).bytes()),
        ("it ends in its header", good().with_key(LIST, many(STRING)).bytes()),
        ("lists in lists", good().with_key(LIST, nested.repeat(9)).bytes()),
        ("metadata of the kind 99", good().with_key(99, vec![0; 8]).bytes()),
        ("general.alignment of 0", unaligned.bytes()),
        ("keeps \"test.tensor\" as Q2_K; read are Q4_0, Q4_1", good().with_tensor(&[256], 10, 0).bytes()),
        ("as one of the IQ formats", good().with_tensor(&[256], 20, 0).bytes()),
        ("as format 4711, which ggml has not", good().with_tensor(&[256], 4711, 0).bytes()),
        ("rows of 48 values, which are no whole blocks of 32", good().with_tensor(&[48, 2], Q4_0, 0).bytes()),
        ("has no size that a tensor can have", good().with_tensor(&[1 << 40, 1 << 40], 0, 0).bytes()),
        ("has no size that a tensor can have", good().with_tensor(&[0, 7], 0, 0).bytes()),
        ("has 5 dimensions", good().with_tensor(&[1; 5], 0, 0).bytes()),
        ("ends behind its", good().with_tensor(&[32], 0, u64::MAX).bytes()),
        ("ends behind its", good().with_tensor(&[1 << 40], 0, 0).bytes()),
        ("has \"img_in.weight\" twice", twice.bytes()),
        ("is no multiple of 64, its general.alignment", odd.bytes()),
        ("where those before it end at", shared.bytes()),
    ];
    for (says, bytes) in cases {
        let problem = problem(&bytes).expect(says);
        assert!(problem.contains(says), "{says}: {problem}");
    }
}

/// Every beginning of a file, and every byte of its header with each bit the other way round.
#[test]
fn no_gguf_file_however_mangled_ends_the_process() {
    let whole = good().bytes();
    let file = tempfile::NamedTempFile::with_suffix(".gguf").expect("a file");
    let header = whole.len() - good().values;
    for end in 0..whole.len() {
        fs::write(file.path(), &whole[..end]).expect("writes");
        assert!(check(file.path()).is_err(), "{end} of {} bytes", whole.len());
    }
    for bit in 0..header * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(file.path(), &bytes).expect("writes");
        let _ = check(file.path());
    }
}
