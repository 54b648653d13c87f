// Devkube is a Kubernetes cluster for tests, in one process: etcd, the real kube-apiserver, the real controllers of what
// the tests use, and a kubelet that only pretends (kubelet.go).
//
//	devkube -dir FOLDER [-port PORT]
//
// FOLDER keeps everything: a second start with the same folder and port is the same cluster again. When the API server
// answers, FOLDER has two kubeconfigs, and the last of them is written when all is ready:
//
//	agent.kubeconfig   the user "fleetwave-agent", who may do nothing until a test binds a role to it
//	kubeconfig         an administrator
//
// It ends with its standard input, so that no test leaves one behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	flags := flag.NewFlagSet("devkube", flag.ExitOnError)
	dir := flags.String("dir", "", "the folder of certificates, kubeconfigs and etcd's data")
	port := flags.Int("port", 0, "the API's port on 127.0.0.1; 0 takes a free one")
	_ = flags.Parse(os.Args[1:])
	if *dir == "" || flags.NArg() > 0 {
		flags.Usage()
		os.Exit(2)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		// At once: an orderly end takes the API server a minute, and nobody needs the state.
		os.Exit(0)
	}()
	if *port == 0 {
		*port = must(freePort())
	}
	check(os.MkdirAll(*dir, 0o700))
	in := func(name string) string { return filepath.Join(*dir, name) }
	if _, err := os.Stat(in("ca.crt")); err != nil {
		check(makeCertificates(*dir))
	}
	// Whoever waits for it must not take the last start's for this one's.
	_ = os.Remove(in("kubeconfig"))

	etcd := must(startEtcd(in("etcd")))
	go func() { log.Fatalf("kube-apiserver ended: %v", apiServer(*dir, *port, etcd)) }()

	check(writeKubeconfig(in("agent.kubeconfig"), *port, "agent"))
	check(writeKubeconfig(in("kubeconfig.new"), *port, "admin"))
	config := must(clientcmd.BuildConfigFromFlags("", in("kubeconfig.new")))
	// The controllers of a test are not the place to wait for a client's own throttle.
	config.QPS, config.Burst = 200, 400
	ctx := context.Background()
	waitReady(ctx, kubernetes.NewForConfigOrDie(config))
	check(startControllers(ctx, config))
	check(os.Rename(in("kubeconfig.new"), in("kubeconfig")))
	select {}
}

// startEtcd starts a store on free ports and returns its address when it is ready. Nothing is synced to disk: a killed
// process loses nothing by that, only a power cut would.
func startEtcd(dir string) (string, error) {
	config := embed.NewConfig()
	config.Dir, config.LogLevel, config.UnsafeNoFsync = dir, "error", true
	var urls [2]url.URL
	for i := range urls {
		port, err := freePort()
		if err != nil {
			return "", err
		}
		urls[i] = url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}
	}
	config.ListenClientUrls, config.AdvertiseClientUrls = urls[:1], urls[:1]
	config.ListenPeerUrls, config.AdvertisePeerUrls = urls[1:], urls[1:]
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return "", err
	}
	<-etcd.Server.ReadyNotify()
	return urls[0].String(), nil
}

// apiServer runs kube-apiserver; it returns only if that fails.
func apiServer(dir string, port int, etcd string) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	command := app.NewAPIServerCommand()
	command.SetArgs([]string{
		"--etcd-servers=" + etcd,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port),
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		"--tls-cert-file=" + in("server.crt"), "--tls-private-key-file=" + in("server.key"),
		"--client-ca-file=" + in("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + in("sa.pub"), "--service-account-signing-key-file=" + in("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/24",
		"--authorization-mode=RBAC",
		// Nothing makes the service accounts that it would ask for.
		"--disable-admission-plugins=ServiceAccount",
	})
	return command.Execute()
}

func waitReady(ctx context.Context, client kubernetes.Interface) {
	for {
		if _, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func writeKubeconfig(path string, port int, user string) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: devkube, cluster: {server: "https://127.0.0.1:%d", certificate-authority: ca.crt}}]
users: [{name: %[2]s, user: {client-certificate: %[2]s.crt, client-key: %[2]s.key}}]
contexts: [{name: devkube, context: {cluster: devkube, user: %[2]s, namespace: default}}]
current-context: devkube
`, port, user)
	return os.WriteFile(path, []byte(text), 0o600)
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}
