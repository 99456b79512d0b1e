//! Objects with long keys, for a file system that makes file names out of whole keys: it gets a short way to the object's directory.
//!
//! `s3s-fs` keeps what it knows of an object beside the buckets, in a file that is named after the key in base64, and file names have
//! at most 255 bytes. S3 takes keys of 1,024 bytes.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use s3s::dto::{
    CreateBucketInput, CreateBucketOutput, DeleteObjectInput, DeleteObjectOutput, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput,
};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result};
use s3s_fs::FileSystem;
use sha2::{Digest as _, Sha256};

/// Where the short ways lie, next to the buckets.
const WAYS: &str = ".ways";
/// Of a file's name, and of what stands around the two names in it.
const MAX_NAME_BYTES: usize = 255;
const AROUND_BYTES: usize = 34;

pub(super) struct LongKeys {
    files: FileSystem,
    root: PathBuf,
}

impl LongKeys {
    pub(super) fn new(files: FileSystem, root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        fs::create_dir_all(root.join(WAYS))?;
        Ok(Self { files, root })
    }

    /// The key under which the file system has the object; the file lies where its own key says.
    fn stored(&self, bucket: &str, key: String) -> S3Result<String> {
        let name_bytes = (bucket.len() + key.len()).div_ceil(3) * 4 + AROUND_BYTES;
        let Some((directory, file)) = key.rsplit_once('/').filter(|_| name_bytes > MAX_NAME_BYTES) else { return Ok(key) };
        let directory = Path::new(bucket).join(directory);
        if !directory.components().all(|component| matches!(component, Component::Normal(_))) {
            return Ok(key);
        }
        let way = &base16ct::lower::encode_string(&Sha256::digest(directory.as_os_str().as_encoded_bytes()))[..32];
        match symlink(self.root.join(&directory), self.root.join(WAYS).join(way)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(S3Error::internal_error(error)),
            _ => Ok(format!("../{WAYS}/{way}/{file}")),
        }
    }

    /// As [`Self::stored`], for an object whose directory may not be there yet.
    fn stored_anew(&self, bucket: &str, key: &str) -> S3Result<String> {
        let directory = Path::new(bucket).join(key).parent().map(Path::to_owned);
        let stored = self.stored(bucket, key.to_owned())?;
        if let Some(directory) = directory.filter(|_| stored != key) {
            fs::create_dir_all(self.root.join(directory)).map_err(S3Error::internal_error)?;
        }
        Ok(stored)
    }
}

/// The server's calls: those whose object may have a long key, and the others.
macro_rules! calls {
    ($($keyed:ident: $keyed_input:ident -> $keyed_output:ident),*; $($call:ident: $input:ident -> $output:ident),*) => {
        #[async_trait::async_trait]
        impl S3 for LongKeys {
            $(async fn $keyed(&self, mut request: S3Request<$keyed_input>) -> S3Result<S3Response<$keyed_output>> {
                request.input.key = self.stored(&request.input.bucket, request.input.key)?;
                self.files.$keyed(request).await
            })*

            $(async fn $call(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.files.$call(request).await
            })*

            async fn put_object(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
                request.input.key = self.stored_anew(&request.input.bucket, &request.input.key)?;
                self.files.put_object(request).await
            }
        }
    };
}

calls! {
    get_object: GetObjectInput -> GetObjectOutput,
    head_object: HeadObjectInput -> HeadObjectOutput,
    delete_object: DeleteObjectInput -> DeleteObjectOutput;
    create_bucket: CreateBucketInput -> CreateBucketOutput,
    head_bucket: HeadBucketInput -> HeadBucketOutput,
    list_buckets: ListBucketsInput -> ListBucketsOutput,
    list_objects: ListObjectsInput -> ListObjectsOutput,
    list_objects_v2: ListObjectsV2Input -> ListObjectsV2Output
}
