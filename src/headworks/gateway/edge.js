// Which pods get traffic, for nginx (njs 0.9). Every pod is asked `/ready` on its own timer; what came of
// it stands in the shared dictionary `headworks_pods`, so that all workers see the same:
//
//   <pod address>  failed checks in a row; no entry: not yet asked, and so not yet ready
//   turn           requests handed out so far: pods take turns
//
// Filled in by headworks.gateway.nginx:
const PODS = __PODS__;
const FAILURES = __FAILURES__;

async function check(pod) {
    let ready = false;
    try {
        const reply = await ngx.fetch(`http://${pod}/ready`);
        ready = reply.status === 200;
    } catch (error) {
        ready = false; // refused, reset or too late: counted like an honest 503
    }
    if (ready) {
        ngx.shared.headworks_pods.set(pod, 0);
    } else {
        ngx.shared.headworks_pods.incr(pod, 1, FAILURES - 1);
    }
}

function readyPods() {
    const ready = [];
    PODS.forEach((pod, index) => {
        const failures = ngx.shared.headworks_pods.get(pod);
        if (failures !== undefined && failures < FAILURES) {
            ready.push(index);
        }
    });
    return ready;
}

// The upstream of the pod whose turn it is; empty when no pod is ready.
function choose() {
    const ready = readyPods();
    if (ready.length === 0) {
        return '';
    }
    const turn = ngx.shared.headworks_pods.incr('turn', 1, 0);
    return `headworks_pod_${ready[turn % ready.length]}`;
}

// The gateway's own health: 200 while it has a pod to send to.
function health(request) {
    const ready = readyPods().length;
    request.headersOut['Content-Type'] = 'application/json';
    request.headersOut['Cache-Control'] = 'no-store';
    request.return(ready > 0 ? 200 : 503, JSON.stringify({ready: ready, pods: PODS.length}));
}

// One check per pod (check0, check1, …), so that a pod that hangs delays no other pod's check.
const handlers = {choose, health};
PODS.forEach((pod, index) => {
    handlers[`check${index}`] = () => check(pod);
});

export default handlers;
