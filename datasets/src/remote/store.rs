//! The store behind an address, with the settings that the environment and the caller give.

use crate::{Error, Result};
use object_store::path::Path as ObjectPath;
use object_store::ObjectStore;
use std::ffi::OsString;
use std::sync::Arc;
use url::Url;

/// Variables of the environment that are settings of a store. Others may look like one (`TOKEN`, `REGION`, `TIMEOUT`)
/// and mean something else.
const PREFIXES: [&str; 3] = ["aws_", "azure_", "google_"];

/// The store of `url` and the folder within it. Later settings override earlier ones: those the address itself asks
/// for, the environment's, the caller's.
pub(super) fn connect(url: &str, given: &[(String, String)]) -> Result<(Arc<dyn ObjectStore>, ObjectPath)> {
    let unknown = |reason: String| Error::UnknownLocation {
        url: url.to_owned(),
        reason,
    };
    let parsed = Url::parse(url).map_err(|error| unknown(error.to_string()))?;
    let mut settings: Vec<_> = from_environment(std::env::vars_os()).collect();
    settings.extend(given.iter().cloned());
    if parsed.scheme() == "http" || settings.iter().any(|(name, value)| is_plain_endpoint(name, value)) {
        settings.insert(0, ("allow_http".to_owned(), "true".to_owned()));
    }
    let (store, folder) =
        object_store::parse_url_opts(&parsed, settings).map_err(|error| unknown(super::one_line(&error)))?;
    Ok((Arc::from(store), folder))
}

fn from_environment(variables: impl Iterator<Item = (OsString, OsString)>) -> impl Iterator<Item = (String, String)> {
    variables.filter_map(|(name, value)| {
        let name = name.to_str()?.to_ascii_lowercase();
        let is_setting = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        is_setting.then_some((name, value.into_string().ok()?))
    })
}

/// Whoever names an endpoint without encryption means it: MinIO and its like on a local network.
fn is_plain_endpoint(name: &str, value: &str) -> bool {
    (name.contains("endpoint") || name.contains("base_url")) && value.starts_with("http://")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_variables_of_stores_are_settings_and_none_has_to_be_unicode() {
        let mut variables: Vec<(OsString, OsString)> = vec![
            ("AWS_REGION".into(), "eu-north-1".into()),
            ("REGION".into(), "Bavaria".into()),
            ("TIMEOUT".into(), "soon".into()),
        ];
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStringExt;
            variables.push(("AWS_TOKEN".into(), OsString::from_vec(vec![0xff])));
            variables.push((OsString::from_vec(vec![0xfe]), "x".into()));
        }
        let settings: Vec<_> = from_environment(variables.into_iter()).collect();
        assert_eq!(settings, [("aws_region".to_owned(), "eu-north-1".to_owned())]);
    }

    #[test]
    fn addresses_of_every_kind_find_their_store() {
        let secret = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let settings = [
            secret("aws_region", "us-east-1"),
            secret("azure_storage_account_name", "account"),
            secret("google_skip_signature", "true"),
        ];
        for (url, store) in [
            ("s3://bucket/some/shards", "AmazonS3(bucket)"),
            ("gs://bucket/some/shards", "GoogleCloudStorage(bucket)"),
            ("az://container/some/shards", "MicrosoftAzure"),
            ("https://example.com/some/shards", "HttpStore"),
            ("http://example.com/some/shards/", "HttpStore"),
        ] {
            let (found, folder) = connect(url, &settings).unwrap();
            assert!(found.to_string().contains(store), "{url}: {found}");
            assert_eq!(folder.as_ref(), "some/shards", "{url}");
        }
        let error = connect("gopher://host/shards", &[]).err().unwrap();
        assert!(matches!(&error, Error::UnknownLocation { .. }), "{error}");
    }
}
