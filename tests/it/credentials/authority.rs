//! A certificate authority of the tests: it issues what signs, and what must not.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use time::{Duration, OffsetDateTime};

/// PEM of a root, of a chain below it, and of the key of the chain's first certificate, where it was made here.
pub(crate) struct Authority {
    pub(crate) root: String,
    pub(crate) leaf: String,
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn good() -> Self {
        Self::issuing(|_| ())
    }

    /// With the certificate that signs changed.
    pub(crate) fn issuing(change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::of(&PKCS_ECDSA_P256_SHA256, change)
    }

    pub(crate) fn of(algorithm: &'static SignatureAlgorithm, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        Self { key: key.serialize_pem(), ..Self::certifying(&key, change) }
    }

    /// For a key that is kept elsewhere.
    pub(crate) fn certifying(key: &impl PublicKeyData, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut root = parameters("tests root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().expect("a key")).expect("a root");
        let mut middle = parameters("tests intermediate");
        middle.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        middle.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        middle.use_authority_key_identifier_extension = true;
        let middle = CertifiedIssuer::signed_by(middle, KeyPair::generate().expect("a key"), &root).expect("an issuer");
        let mut leaf = parameters("tests signer");
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
        leaf.use_authority_key_identifier_extension = true;
        change(&mut leaf);
        let leaf = leaf.signed_by(key, &middle).expect("a certificate").pem();
        let chain = [leaf.as_str(), &middle.pem(), &root.pem()].concat();
        Self { root: root.pem(), leaf, chain, key: String::new() }
    }
}

pub(crate) fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - Duration::days(2);
    parameters.not_after = now + Duration::days(90);
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.distinguished_name.push(DnType::OrganizationName, "tests of atelier");
    parameters
}
