"""moto's KMS as AWS documents it: what is signed is a digest, and PSS has a salt of its length. moto 5.2.5 hashes a digest once more."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from moto.kms import utils as keys
from moto.server import main


def digest(algorithm):
    return getattr(hashes, "SHA" + algorithm.rsplit("_", 1)[1])()


def by_curve(self, message, algorithm):
    keys.validate_signing_algorithm(algorithm, keys.SigningAlgorithm.ecc_signing_algorithms())
    return self.private_key.sign(message, ec.ECDSA(utils.Prehashed(digest(algorithm))))


def by_rsa(self, message, algorithm):
    keys.validate_signing_algorithm(algorithm, keys.SigningAlgorithm.rsa_signing_algorithms())
    pss = padding.PSS(mgf=padding.MGF1(digest(algorithm)), salt_length=padding.PSS.DIGEST_LENGTH)
    return self.private_key.sign(message, pss, utils.Prehashed(digest(algorithm)))


keys.ECDSAPrivateKey.sign = by_curve
keys.RSAPrivateKey.sign = by_rsa
main(["-H", "127.0.0.1", "-p", "0"])
