; /etc/gdnsd/zones/example.com; the address of ns is that of the DNS server
$TTL 60
@       SOA     ns hostmaster 1 7200 1800 604800 60
@       NS      ns
ns      A       198.51.100.10
www 10  DYNA    multifo!www
