//! Which addresses a URL from a caller may lead to: public ones, and what the operator allows besides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::error::Refused;
use crate::setting::SettingError;

/// What is not the public internet, after the IANA special-purpose registries (RFC 6890 and its successors).
const CLOSED_V4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::UNSPECIFIED, 8, "a \"this network\" address"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private address"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a carrier-grade NAT address"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "a loopback address"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "a link-local address (cloud metadata)"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private address"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "a protocol assignment"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "a documentation address"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a 6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private address"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "a benchmarking address"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "a documentation address"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "a documentation address"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a cloud's internal address"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast address"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved or broadcast address"),
];

const GLOBAL_UNICAST_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Parts of `2000::/3` that are not the public internet.
const CLOSED_V6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "a protocol assignment (Teredo, benchmarking, ORCHID)"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "a documentation address"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "a 6to4 address"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "a documentation address"),
];

/// The operator's exceptions: host names, addresses and networks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reach {
    networks: Vec<IpNet>,
    hosts: Vec<String>,
}

impl Reach {
    /// Reads entries such as `127.0.0.1/32`, `10.1.0.0/16`, `fd00::1` and `hooks.internal`.
    pub(crate) fn new(allow: &[String]) -> Result<Self, SettingError> {
        let mut reach = Self::default();
        for entry in allow {
            if let Ok(network) = entry.parse::<IpNet>() {
                reach.networks.push(network);
            } else if let Ok(address) = entry.parse::<IpAddr>() {
                reach.networks.push(address.into());
            } else if !entry.is_empty() && entry.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
                reach.hosts.push(canonical(entry));
            } else {
                let problem = format!("{entry:?} is neither a host name, an address nor a network such as 10.1.0.0/16");
                return Err(SettingError::new("outbound.allow", problem));
            }
        }
        Ok(reach)
    }

    pub(crate) fn allows_host(&self, host: &str) -> bool {
        self.hosts.contains(&canonical(host))
    }

    /// Refuses the names that lead to this machine whatever any server says (RFC 6761, 6.3); all others have to be resolved.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), Refused> {
        let own = canonical(name);
        if (own != "localhost" && !own.ends_with(".localhost")) || self.allows_host(name) {
            return Ok(());
        }
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        match loopback.map(|address| (address, self.check(address))) {
            [(address, Err(what)), (_, Err(_))] => Err(Refused::Address { host: name.to_owned(), address, what }),
            _ => Ok(()),
        }
    }

    /// Says in words why `address` may not be reached.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), &'static str> {
        let address = address.to_canonical();
        if self.networks.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        match address {
            IpAddr::V4(v4) => check_v4(v4),
            IpAddr::V6(v6) if NAT64.contains(&v6) => {
                let [.., a, b, c, d] = v6.octets();
                self.check(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            }
            IpAddr::V6(v6) => check_v6(v6),
        }
    }
}

fn check_v4(address: Ipv4Addr) -> Result<(), &'static str> {
    let closed = CLOSED_V4.iter().find(|(network, bits, _)| Ipv4Net::new_assert(*network, *bits).contains(&address));
    closed.map_or(Ok(()), |(_, _, what)| Err(what))
}

fn check_v6(address: Ipv6Addr) -> Result<(), &'static str> {
    if address.is_loopback() {
        return Err("a loopback address");
    }
    if !GLOBAL_UNICAST_V6.contains(&address) {
        return Err("a private, link-local or reserved address");
    }
    let closed = CLOSED_V6.iter().find(|(network, bits, _)| Ipv6Net::new_assert(*network, *bits).contains(&address));
    closed.map_or(Ok(()), |(_, _, what)| Err(what))
}

/// Host names are compared without case and without the dot of the root.
fn canonical(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open(allow: &[&str], address: &str) -> bool {
        let allow: Vec<String> = allow.iter().map(|entry| (*entry).to_owned()).collect();
        Reach::new(&allow).unwrap().check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn public_addresses_are_open() {
        for address in ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.32.0.1", "198.20.0.1", "2606:4700::1111"] {
            assert!(open(&[], address), "{address}");
        }
        assert!(open(&[], "64:ff9b::808:808"), "NAT64 of 8.8.8.8");
    }

    #[test]
    fn what_is_not_public_is_closed() {
        let closed = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "168.63.129.16",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::127.0.0.1",
        ];
        for address in closed {
            assert!(!open(&[], address), "{address}");
        }
    }

    #[test]
    fn the_operator_may_open_networks_addresses_and_hosts() {
        assert!(open(&["127.0.0.1/32"], "127.0.0.1"));
        assert!(open(&["127.0.0.1/32"], "::ffff:127.0.0.1"));
        assert!(!open(&["127.0.0.1/32"], "127.0.0.2"));
        assert!(open(&["10.1.0.0/16", "fd00::/8"], "10.1.2.3"));
        assert!(open(&["fd00::/8"], "fd12::1"));
        let reach = Reach::new(&["Hooks.Internal".to_owned()]).unwrap();
        assert!(reach.allows_host("hooks.internal."));
        assert!(!reach.allows_host("hooks.internal.example.com"));
    }

    #[test]
    fn an_entry_that_is_nothing_is_refused() {
        for entry in ["", "10.0.0.0/33", "http://x", "*.example.com"] {
            let error = Reach::new(&[entry.to_owned()]).unwrap_err();
            assert_eq!(error.setting, "outbound.allow");
        }
    }

    proptest! {
        #[test]
        fn a_mapped_address_is_judged_as_what_it_maps(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            let reach = Reach::default();
            prop_assert_eq!(reach.check(v4.into()), reach.check(v4.to_ipv6_mapped().into()));
            let [a, b, c, d] = v4.octets();
            let [ab, cd] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, ab, cd);
            prop_assert_eq!(reach.check(v4.into()), reach.check(nat64.into()));
        }

        #[test]
        fn std_agrees_that_an_open_address_is_none_of_its_special_kinds(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            if Reach::default().check(v4.into()).is_ok() {
                prop_assert!(!(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
                    || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified()));
            }
        }
    }
}
