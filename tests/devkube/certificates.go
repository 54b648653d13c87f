package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs what a cluster needs, and writes it into a folder.
type authority struct {
	dir         string
	serial      int64
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// makeCertificates makes an authority, a server, two users and the key of service accounts.
func makeCertificates(dir string) error {
	ca := &authority{dir: dir}
	template := x509.Certificate{
		Subject: pkix.Name{CommonName: "devkube"},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if err := ca.issue("ca", template); err != nil {
		return err
	}
	server := x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	if err := ca.issue("server", server); err != nil {
		return err
	}
	users := map[string]pkix.Name{
		"admin": {CommonName: "admin", Organization: []string{"system:masters"}},
		"agent": {CommonName: "fleetwave-agent"},
	}
	for name, subject := range users {
		user := x509.Certificate{
			Subject:     subject,
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		if err := ca.issue(name, user); err != nil {
			return err
		}
	}
	return serviceAccountKey(dir)
}

// issue makes a key and a certificate, NAME.key and NAME.crt; the first one signs itself and all others.
func (a *authority) issue(name string, template x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	a.serial++
	template.SerialNumber = big.NewInt(a.serial)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(7*24*time.Hour)
	issuer, signer := a.certificate, a.key
	if issuer == nil {
		issuer, signer = &template, key
	}
	certificate, err := x509.CreateCertificate(rand.Reader, &template, issuer, &key.PublicKey, signer)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", name, err)
	}
	if a.certificate == nil {
		if a.certificate, err = x509.ParseCertificate(certificate); err != nil {
			return err
		}
		a.key = key
	}
	if err := writePEM(filepath.Join(a.dir, name+".crt"), "CERTIFICATE", certificate); err != nil {
		return err
	}
	return writeKey(filepath.Join(a.dir, name+".key"), key)
}

func serviceAccountKey(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, "sa.key"), key); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, "sa.pub"), "PUBLIC KEY", public)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
