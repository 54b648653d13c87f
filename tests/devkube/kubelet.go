package main

import (
	"context"
	"log"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// kubelet says of a pod what a kubelet would. The registry of an image decides how it fares: "bad/" has no such image,
// the program of "crash/" fails, all others run; the pods of a Job are done at once.
func kubelet(ctx context.Context, client kubernetes.Interface, pod *v1.Pod) {
	if pod.Status.Phase != "" && pod.Status.Phase != v1.PodPending {
		return
	}
	pod = pod.DeepCopy()
	now := metav1.Now()
	status := &pod.Status
	status.Phase, status.StartTime, status.PodIP = v1.PodRunning, &now, "10.244.0.1"
	if owner := metav1.GetControllerOf(pod); owner != nil && owner.Kind == "Job" {
		status.Phase = v1.PodSucceeded
	}
	for _, container := range pod.Spec.Containers {
		switch registry, _, _ := strings.Cut(container.Image, "/"); registry {
		case "bad":
			status.Phase = v1.PodPending
		case "crash":
			status.Phase = v1.PodFailed
		}
	}
	status.ContainerStatuses = nil
	for _, container := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, v1.ContainerStatus{
			Name: container.Name, Image: container.Image,
			Ready: status.Phase == v1.PodRunning,
			State: state(status.Phase, now),
		})
	}
	ready := v1.ConditionFalse
	if status.Phase == v1.PodRunning {
		ready = v1.ConditionTrue
	}
	status.Conditions = []v1.PodCondition{
		{Type: v1.PodReady, Status: ready, LastTransitionTime: now},
		{Type: v1.ContainersReady, Status: ready, LastTransitionTime: now},
	}
	if _, err := client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		log.Printf("pod %s: %v", pod.Name, err)
	}
}

func state(phase v1.PodPhase, now metav1.Time) v1.ContainerState {
	switch phase {
	case v1.PodPending:
		return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}
	case v1.PodSucceeded:
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: "Completed", FinishedAt: now}}
	case v1.PodFailed:
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: "Error", ExitCode: 1, FinishedAt: now}}
	default:
		return v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: now}}
	}
}
